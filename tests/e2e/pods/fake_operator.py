"""Runs in a pod: dials an agent's control port as somebody who is not its operator, in several disguises.

    python3 fake_operator.py ADDRESS      one JSON line on stdout: disguise -> what came of it

Only what a stranger can know is used: the names that stand in our certificates.
"""

from __future__ import annotations

import datetime
import json
import socket
import ssl
import sys
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


def certificate(issuer: str, *, is_self_signed: bool) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    issuer_key = key if is_self_signed else ec.generate_private_key(ec.SECP256R1())
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
        .sign(issuer_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = Path(f"/tmp/{issuer}.pem")
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
    except ssl.SSLError as error:
        return f"refused: {error.reason}"
    except OSError as error:
        return f"error: {error!r}"
    return f"answered: {answer!r}"


def main() -> None:
    address = sys.argv[1]
    disguises = {
        "none": None,
        "self-signed": certificate(SUBJECT, is_self_signed=True),
        "another CA of the same name": certificate(ISSUER, is_self_signed=False),
    }
    print(json.dumps({name: dial(address, proof) for name, proof in disguises.items()}))


if __name__ == "__main__":
    main()
