"""Runs in a pod: dials an agent's control port as somebody who is not its operator, in several disguises.

    python3 fake_operator.py ADDRESS      one JSON line on stdout: disguise -> what came of it

Only what a stranger can know is used, the names that stand in our certificates; and, to see that the agent
answers at all, the key of the CA in REAL_CA_KEY.
"""

from __future__ import annotations

import datetime
import json
import os
import socket
import ssl
import sys
import tempfile
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

UPGRADE = (
    b"GET /control HTTP/1.1\r\nHost: agent\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
ISSUER, SUBJECT = "terrahalt-installation", "terrahalt-operator"


def certificate(issuer: str, issuer_key: ec.EllipticCurvePrivateKey | None = None) -> Path:
    """Self-signed without a key to sign it with."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, SUBJECT)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=True)
        .sign(issuer_key or key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = Path(tempfile.mkdtemp()) / "certificate.pem"
    path.write_bytes(private + made.public_bytes(pem))
    return path


def dial(address: str, proof: Path | None) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if proof is not None:
        context.load_cert_chain(proof)
    try:
        with socket.create_connection((address, 8443), timeout=10) as plain, context.wrap_socket(plain) as tls:
            # In TLS 1.3 the client is done before the server has looked at its certificate.
            tls.sendall(UPGRADE)
            answer = tls.recv(200)
    except ssl.SSLError:
        return "refused"
    except OSError as error:
        return "refused" if isinstance(error, ConnectionResetError) else f"error: {error!r}"
    # The alert may be lost with the connection, which the agent cuts off.
    return f"answered: {answer!r}" if answer else "refused"


def main() -> None:
    address = sys.argv[1]
    real_key = serialization.load_pem_private_key(os.environ["REAL_CA_KEY"].encode(), None)
    assert isinstance(real_key, ec.EllipticCurvePrivateKey)
    disguises = {
        "no certificate": None,
        "self-signed": certificate(SUBJECT),
        "another CA of the same name": certificate(ISSUER, ec.generate_private_key(ec.SECP256R1())),
        "the real CA": certificate(ISSUER, real_key),
    }
    print(json.dumps({name: dial(address, proof) for name, proof in disguises.items()}))


if __name__ == "__main__":
    main()
