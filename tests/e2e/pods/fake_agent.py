"""Runs in a pod: answers at port 8443 as an agent does, with a key of its own and this pod's own token.

Lets everybody in, and writes on stdout who called and what was said: nobody has to.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import ssl
import uuid
from pathlib import Path

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from terrahalt_protocol.codec import encode
from terrahalt_protocol.messages import PROTOCOL_VERSION, Hello

TOKEN = Path("/var/run/secrets/terrahalt.dev/agent/token").read_text()


def tell(what: str, **more: object) -> None:
    print(json.dumps({"what": what, **more}), flush=True)


def context() -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, os.environ["TERRAHALT_POD_NAME"][:64])])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file = Path("/tmp/fake.pem")
    file.write_bytes(private + certificate.public_bytes(pem))
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(file)
    return made


async def control(request: web.Request) -> web.WebSocketResponse:
    tell("called", by=request.remote)
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    hello = Hello(
        protocol_version=PROTOCOL_VERSION,
        agent_version="0.1.0",
        namespace=os.environ["TERRAHALT_POD_NAMESPACE"],
        pod_name=os.environ["TERRAHALT_POD_NAME"],
        pod_uid=os.environ["TERRAHALT_POD_UID"],
        boot_id=str(uuid.uuid4()),
        identity_token=TOKEN,
    )
    for frame in encode(hello):
        await socket.send_str(frame)
    async for message in socket:
        tell("heard", text=str(message.data)[:200])
    return socket


async def main() -> None:
    application = web.Application()
    application.router.add_get("/control", control)
    health = web.Application()
    health.router.add_get("/readyz", lambda _request: asyncio.sleep(0, web.Response(text="ok\n")))
    for app, port, tls in ((application, 8443, context()), (health, 8081, None)):
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, None, port, ssl_context=tls).start()
    tell("listening")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
