"""Who this agent is on the wire, and whom it obeys.

The key is made in memory and never lies in a file; the operator pins its fingerprint before the first
run. Only a client whose certificate chains to the operator's CA gets past the handshake.
Called by `app` once, before anything else runs; `seal_memory` last, because a process that is not
dumpable can't open its own memfd any more.
"""

from __future__ import annotations

import ctypes
import datetime
import os
import ssl

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_PR_SET_DUMPABLE = 4
_VALID = datetime.timedelta(days=3650)
"""An agent may wait for years; what counts is the pinned fingerprint, not the date."""
_CLOCK_SKEW = datetime.timedelta(days=1)


def server_context(operator_ca: str, pod_name: str) -> ssl.SSLContext:
    """TLS 1.3 with a key of this process alone. Raises ValueError where the CA is no PEM certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0  # no resumption: each connection proves itself
    try:
        context.load_verify_locations(cadata=operator_ca)
    except ssl.SSLError as error:
        raise ValueError(f"TERRAHALT_OPERATOR_CA is no PEM certificate: {error}") from error
    fd = os.memfd_create("terrahalt-agent-key", os.MFD_CLOEXEC)
    try:
        os.write(fd, _key_and_certificate(pod_name))
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    return context


def seal_memory() -> None:
    """From here on no process of the same user reads this one's memory or environment."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"can't protect the agent's memory: {os.strerror(code)}")


def _key_and_certificate(pod_name: str) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, pod_name[:64] or "terrahalt-agent")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + _VALID)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private + certificate.public_bytes(serialization.Encoding.PEM)
