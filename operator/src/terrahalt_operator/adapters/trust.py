"""Who the operator is, and who an agent is: keys, certificates, fingerprints, token reviews.

The installation's CA and report secret lie in one Secret of the operator's own namespace, never in a
task's. The operator proves itself to an agent by a client certificate of that CA, made in memory and
made anew long before it ends; what is connected stays connected. An agent proves its pod by the
projected token that it sends in Hello. The only door to `cryptography`. Called by `app` (load),
`agents` (each connection) and `world` (the secret that pods and reports are proven by). docs/trust.md
says how the CA is replaced.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import os
import secrets
import ssl
from collections.abc import Callable

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from terrahalt_operator.adapters.cluster import SECRETS, Cluster
from terrahalt_operator.core import names
from terrahalt_operator.errors import AgentUntrusted, AlreadyExists, NotFound

CA_DAYS = 3650
CLIENT_S = 24 * 3600.0
"""How long a client certificate is good for: one that leaks is of no use the day after."""
RENEWED_AFTER_S = CLIENT_S / 2
"""Half of it is left for clocks that differ, and for handshakes that are under way."""
CLOCK_SKEW_S = 24 * 3600.0
"""By so much an agent's clock may be behind ours; half as much it may be ahead."""
_POD_UID = "authentication.kubernetes.io/pod-uid"


class Trust:
    """The installation's secrets, and the TLS context with which agents are dialled.

    `ca_pem` may hold several certificates: agents accept them all, and the one that belongs to
    `ca_key_pem` signs. Raises ValueError where none does.
    """

    def __init__(self, ca_pem: bytes, ca_key_pem: bytes, report_secret: bytes, clock: Callable[[], float]) -> None:
        self.ca_pem = ca_pem.decode()
        self.report_secret = report_secret
        self._clock = clock
        self._ca_key = _private_key(ca_key_pem)
        self._ca = _of_key(x509.load_pem_x509_certificates(ca_pem), self._ca_key)
        self._made_at = clock()
        self._tls = _client_context(self._ca, self._ca_key, self._made_at)

    @property
    def tls(self) -> ssl.SSLContext:
        """For the next connection: with a certificate that is good for half a day at least."""
        now = self._clock()
        # A clock that was set back makes a new one too: the old one may not be valid yet.
        if not 0 <= now - self._made_at < RENEWED_AFTER_S:
            self._tls, self._made_at = _client_context(self._ca, self._ca_key, now), now
        return self._tls

    @classmethod
    async def load(cls, cluster: Cluster, namespace: str, clock: Callable[[], float]) -> Trust:
        """Reads the trust Secret, or makes it; two operators that start at once agree on one."""
        try:
            secret = await cluster.get(SECRETS, namespace, names.TRUST_SECRET)
        except NotFound:
            ca, key = new_ca(clock())
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
        return cls(data["ca.crt"], data["ca.key"], data["report-secret"], clock)


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


def _private_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"Secret {names.TRUST_SECRET}: ca.key is no key on an elliptic curve")
    return key


def _of_key(certificates: list[x509.Certificate], key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    for certificate in certificates:
        if certificate.public_key() == key.public_key():
            return certificate
    raise ValueError(f"Secret {names.TRUST_SECRET}: none of the certificates in ca.crt belongs to ca.key")


def _client_context(ca: x509.Certificate, ca_key: ec.EllipticCurvePrivateKey, now: float) -> ssl.SSLContext:
    """Presents our certificate. The agent's own, made in its memory, is checked by fingerprint instead."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder("terrahalt-operator", ca.subject, key.public_key(), now, CLIENT_S)
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


def new_ca(now: float) -> tuple[bytes, bytes]:
    """Certificate and key, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "terrahalt-installation")])
    certificate = (
        _builder("terrahalt-installation", name, key.public_key(), now, CA_DAYS * 86_400.0)
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
    common_name: str, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, now: float, valid_s: float
) -> x509.CertificateBuilder:
    begin = dt.datetime.fromtimestamp(now - CLOCK_SKEW_S, dt.UTC)
    end = dt.datetime.fromtimestamp(now + valid_s, dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
