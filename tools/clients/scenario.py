"""Runs a client program that asks for restarts of its server.

The program gets `HOST:PORT` as its last argument. When it prints the line `restart`, the server is
killed with kill -9 and started again in the same directory and on the same port; then the program
gets a line on its standard input. Its exit status is the result.
"""

import argparse
import subprocess
import sys
import tempfile
import threading

import zkserver


def run(server_name, program, timeout_s=180):
    """The exit status of `program` (an argument vector) against a fresh server."""
    with tempfile.TemporaryDirectory(prefix="ringkeeper-client-") as directory:
        server = zkserver.Server(server_name, directory, {"extendedTypesEnabled": "true"})
        server.start()
        client = subprocess.Popen(
            [*program, f"127.0.0.1:{server.port}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        watchdog = threading.Timer(timeout_s, client.kill)
        watchdog.start()
        try:
            for line in client.stdout:
                if line.strip() == "restart":
                    server.kill()
                    server.start()
                    client.stdin.write("restarted\n")
                    client.stdin.flush()
                else:
                    print(line, end="", flush=True)
            status = client.wait()
        except BrokenPipeError:
            status = client.wait()
        finally:
            watchdog.cancel()
            if client.poll() is None:
                client.kill()
            if server.process is not None and server.process.poll() is not None:
                print(f"the server has ended:\n{server.tail()}", file=sys.stderr)
            server.stop()
    return status


def main(description, build):
    """The command line of a driver; `build` makes the program and returns its argument vector."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--server", default=zkserver.default_server(), help="`apache`, or a command that takes a zoo.cfg"
    )
    options = parser.parse_args()
    status = run(options.server, build())
    print(f"{options.server}: " + ("passed" if status == 0 else f"FAILED ({status})"))
    return 0 if status == 0 else 1
