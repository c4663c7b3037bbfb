"""Certificates for tests: a self-signed one for 127.0.0.1, localhost and executors, which is its own authority."""

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAY = datetime.timedelta(days=1)


def write_certificate(folder: Path, name: str = "rungpt") -> tuple[Path, Path]:
    """Write a new certificate and its key into a folder; return their paths, which are the same each time."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    dns_names = [x509.DNSName(one) for one in ("localhost", "rungpt-executor")]
    names = x509.SubjectAlternativeName([*dns_names, x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number(), now - DAY, now + DAY)
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = folder / "cert.pem", folder / "key.pem"
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    cert_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return cert_file, key_file


def write_executor_tls(folder: Path) -> Path:
    """Write a certificate that is its own authority as executors and gateways read it; return the folder."""
    folder.mkdir(exist_ok=True)
    cert, key = write_certificate(folder)
    (folder / "ca.crt").write_bytes(cert.read_bytes())
    key.rename(folder / "tls.key")
    cert.rename(folder / "tls.crt")
    return folder
