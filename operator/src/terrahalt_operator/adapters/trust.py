"""Who the operator is, and who an agent is: keys, certificates, fingerprints, token reviews.

The installation's CA and report secret lie in one Secret of the operator's own namespace, never in
a task's. The operator proves itself to an agent by a client certificate of that CA, made anew in
memory at each start. An agent proves its pod by the projected token that it sends in Hello. The
only door to `cryptography`. Called by `app` (load) and `agents` (each connection).
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import os
import secrets
import ssl

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from terrahalt_operator.adapters.cluster import SECRETS, Cluster
from terrahalt_operator.core import names
from terrahalt_operator.errors import AgentUntrusted, AlreadyExists, NotFound

CA_DAYS = 3650
CLIENT_DAYS = 365
_POD_UID = "authentication.kubernetes.io/pod-uid"


class Trust:
    """The installation's secrets, and the TLS context with which agents are dialled."""

    def __init__(self, ca_pem: bytes, ca_key_pem: bytes, report_secret: bytes) -> None:
        self.ca_pem = ca_pem.decode()
        self.report_secret = report_secret
        self.tls = _client_context(ca_pem, ca_key_pem)

    @classmethod
    async def load(cls, cluster: Cluster, namespace: str) -> Trust:
        """Reads the trust Secret, or makes it; two operators that start at once agree on one."""
        try:
            secret = await cluster.get(SECRETS, namespace, names.TRUST_SECRET)
        except NotFound:
            ca, key = _new_ca()
            data = {"ca.crt": ca, "ca.key": key, "report-secret": secrets.token_bytes(32)}
            body = {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": names.TRUST_SECRET},
                "type": "terrahalt.dev/trust",
                "data": {k: base64.b64encode(v).decode() for k, v in data.items()},
            }
            try:
                secret = await cluster.create(SECRETS, namespace, body)
            except AlreadyExists:
                secret = await cluster.get(SECRETS, namespace, names.TRUST_SECRET)
        data = {k: base64.b64decode(v) for k, v in secret["data"].items()}
        return cls(data["ca.crt"], data["ca.key"], data["report-secret"])


def fingerprint(certificate_der: bytes) -> str:
    return "sha256:" + hashlib.sha256(certificate_der).hexdigest()


async def prove_pod(cluster: Cluster, token: str, pod_uid: str) -> None:
    """Raises AgentUntrusted unless the API server says that this token was given to this very pod."""
    if not token:
        raise AgentUntrusted(f"what answered for pod {pod_uid} has no identity token")
    review = await cluster.review_token(token, names.TOKEN_AUDIENCE)
    extra = (review.get("user") or {}).get("extra") or {}
    if not review.get("authenticated") or names.TOKEN_AUDIENCE not in review.get("audiences", ()):
        raise AgentUntrusted(f"what answered for pod {pod_uid} has a token that the API server refuses")
    if pod_uid not in extra.get(_POD_UID, ()):
        raise AgentUntrusted(f"what answered for pod {pod_uid} has the token of another pod")


def _client_context(ca_pem: bytes, ca_key_pem: bytes) -> ssl.SSLContext:
    """Presents our certificate. The agent's own, made in its memory, is checked by fingerprint instead."""
    ca = x509.load_pem_x509_certificate(ca_pem)
    ca_key = serialization.load_pem_private_key(ca_key_pem, None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder("terrahalt-operator", ca.subject, key.public_key(), CLIENT_DAYS)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=True)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    # ssl reads keys from files only; this one lives in memory and is gone with its descriptor.
    memory = os.memfd_create("operator-key", os.MFD_CLOEXEC)
    try:
        os.write(memory, certificate.public_bytes(serialization.Encoding.PEM) + _pem(key))
        context.load_cert_chain(f"/proc/self/fd/{memory}")
    finally:
        os.close(memory)
    return context


def _new_ca() -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "terrahalt-installation")])
    certificate = (
        _builder("terrahalt-installation", name, key.public_key(), CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.KeyUsage(
                digital_signature=False,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=True,
                crl_sign=True,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM), _pem(key)


def _builder(
    common_name: str, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))  # clocks of nodes differ a little
        .not_valid_after(now + dt.timedelta(days=days))
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
