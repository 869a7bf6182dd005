"""A virtual environment with kazoo and what its tests need, under target/clients."""

import subprocess
import venv

import zkserver

WORK = zkserver.TARGET / "clients"
VENV = WORK / "kazoo-venv"
# The wheel carries its tests. pyOpenSSL: kazoo's harness uses calls that later releases lack.
REQUIREMENTS = [
    "kazoo==2.11.0",
    "eventlet",
    "gevent",
    "objgraph",
    "pure_sasl",
    "pyjks",
    "pyOpenSSL<24.3",
    "pytest",
    "pytest-rerunfailures",
    "pytest-timeout",
]


def install():
    """Makes the virtual environment once per set of requirements."""
    WORK.mkdir(parents=True, exist_ok=True)
    stamp = VENV / "requirements.txt"
    wanted = "\n".join(REQUIREMENTS)
    if stamp.exists() and stamp.read_text() == wanted:
        return
    venv.create(VENV, clear=True, with_pip=True)
    subprocess.run([VENV / "bin/pip", "install", "--quiet", *REQUIREMENTS], check=True)
    stamp.write_text(wanted)
