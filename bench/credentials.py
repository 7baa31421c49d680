"""Certificates and a key for the TLS scenarios, made anew for each run."""

import secrets
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

USER = "bench"

AUTHORITY = 'cn = "bench authority"\nca\ncert_signing_key\nexpiration_days = 2\n'
SERVER = ('cn = "localhost"\ndns_name = "localhost"\nip_address = "127.0.0.1"\n'
          "tls_www_server\nsigning_key\nexpiration_days = 2\n")


@dataclass(frozen=True)
class Credentials:
    """What server and client prove themselves with: certificates, or a key both know.

    Clients are not asked for certificates: not every server compared here can do that.
    """

    directory: Path
    uses_key: bool

    @property
    def key_file(self) -> Path:
        return self.directory / "keys.psk"

    def uri(self, port: int, name: str) -> str:
        """The NBD URI of an export, with where libnbd finds what it needs."""
        if self.uses_key:
            return f"nbds://{USER}@127.0.0.1:{port}/{name}?tls-psk-file={quote(str(self.key_file))}"
        return f"nbds://127.0.0.1:{port}/{name}?tls-certificates={quote(str(self.directory))}"

    def qemu_object(self) -> str:
        """The value of qemu's --object."""
        kind = "tls-creds-psk" if self.uses_key else "tls-creds-x509"
        verify = "" if self.uses_key else ",verify-peer=no"
        return f"{kind},id=tls0,dir={self.directory},endpoint=server{verify}"


def missing_maker() -> str | None:
    """Why certificates cannot be made, or None."""
    return None if shutil.which("certtool") else "certtool is not installed (apt install gnutls-bin)"


def make_credentials(directory: Path, uses_key: bool) -> Credentials:
    directory.mkdir(exist_ok=True)
    made = Credentials(directory, uses_key)
    if uses_key:
        made.key_file.write_text(f"{USER}:{secrets.token_hex(32)}\n", encoding="ascii")
        made.key_file.chmod(0o600)
        return made

    def place(name: str) -> str:
        return str(directory / name)

    for name in ("ca", "server"):
        _certtool("--generate-privkey", "--key-type", "ecdsa", "--outfile",
                  place(f"{name}-key.pem"))
    for name, text in (("ca", AUTHORITY), ("server", SERVER)):
        Path(place(f"{name}.info")).write_text(text, encoding="ascii")
    _certtool("--generate-self-signed", "--load-privkey", place("ca-key.pem"),
              "--template", place("ca.info"), "--outfile", place("ca-cert.pem"))
    _certtool("--generate-certificate", "--load-privkey", place("server-key.pem"),
              "--load-ca-certificate", place("ca-cert.pem"),
              "--load-ca-privkey", place("ca-key.pem"),
              "--template", place("server.info"), "--outfile", place("server-cert.pem"))
    return made


def _certtool(*arguments: str) -> None:
    subprocess.run(["certtool", *arguments], check=True, capture_output=True, timeout=60)
