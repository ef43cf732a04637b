#!/usr/bin/env python3
"""Measures how long submissions are not accepted when the leader is killed.

Starts `cortex dev` in a temporary folder on free ports, kills the leader with SIGKILL again and again
(and starts it again each time), and prints, over all kills, the time from the kill to the next accepted
submission. The client is at another replica, sends a submission every few milliseconds, each over a
connection of its own, and does not wait for the one before.

    deploy/failover.py [--binary target/release/cortex] [--kills 10] [--set key=value]...

Needs nothing but Python 3; takes about three seconds per kill.
"""

import argparse
import http.client
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

JOB = {"name": "probe", "model_name": "failover", "model_version": "1", "input_data": {"n": 1}}
BODY = json.dumps(JOB)
HEADERS = {"Content-Type": "application/json", "Connection": "close"}
PATIENCE_S = 30


def call(address, method, path, body=None, timeout=10):
    """One request over a new connection: status and body."""
    connection = http.client.HTTPConnection(address, timeout=timeout)
    try:
        connection.request(method, path, body, HEADERS)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def wait_for(what, look):
    """Waits until `look` answers something true, and answers that."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            found = look()
        except (OSError, http.client.HTTPException, ValueError):
            found = None
        if found:
            return found
        time.sleep(0.02)
    sys.exit(f"{what}: not within {PATIENCE_S} s")


def is_ready(address):
    return call(address, "GET", "/health/ready", timeout=2)[0] == 200


def leader_at(address):
    """The id of the leader as the replica at this address sees it, or None."""
    return json.loads(call(address, "GET", "/api/v1/cluster", timeout=2)[1])["leader"]


def accepts(address):
    return call(address, "POST", "/api/v1/jobs", BODY)[0] == 201


def time_to_accept(address, pid, every_s):
    """Kills a process; answers the seconds from then to the first 201 for a submission sent after it."""
    accepted = threading.Event()
    moments = []

    def submit():
        try:
            if accepts(address):
                moments.append(time.monotonic())
                accepted.set()
        except (OSError, http.client.HTTPException):
            pass

    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    senders = []
    while not accepted.is_set() and time.monotonic() - killed < PATIENCE_S:
        sender = threading.Thread(target=submit, daemon=True)
        sender.start()
        senders.append(sender)
        accepted.wait(every_s)
    for sender in senders:
        sender.join(PATIENCE_S)
    if not moments:
        sys.exit(f"no submission was accepted within {PATIENCE_S} s of a kill")
    return min(moments) - killed


def measure(options, folder, manifest):
    """The times, one per kill."""
    replicas = {replica["id"]: replica for replica in manifest["replicas"]}
    restarted, times = [], []
    try:
        for number in range(1, options.kills + 1):
            for replica in replicas.values():
                wait_for("a replica is ready", lambda: is_ready(replica["http"]))
            leader = wait_for("there is a leader", lambda: leader_at(manifest["replicas"][0]["http"]))
            victim = replicas[leader]
            other = next(replica["http"] for replica in replicas.values() if replica is not victim)
            wait_for("a submission is accepted", lambda: accepts(other))
            took = time_to_accept(other, victim["pid"], options.every / 1000)
            times.append(took)
            print(f"kill {number}: replica {leader}, {took * 1000:.0f} ms", flush=True)
            wait_for("another leader", lambda: leader_at(other) not in (None, leader))
            with open(folder / f"restart-{number}.log", "wb") as log:
                command = [options.binary, "serve", "--config", victim["config"]]
                process = subprocess.Popen(command, stdout=log, stderr=log)
            restarted.append(process)
            victim["pid"] = process.pid
    finally:
        for process in restarted:
            process.kill()
            process.wait()
    return times


def summary(times):
    ms = sorted(took * 1000 for took in times)
    p90 = ms[-(-len(ms) * 9 // 10) - 1]
    return (
        f"{len(ms)} kills, ms from the kill to the next accepted submission: min {ms[0]:.0f}, "
        f"median {statistics.median(ms):.0f}, p90 {p90:.0f}, max {ms[-1]:.0f}"
    )


def main():
    root = pathlib.Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=str(root / "target/release/cortex"), help="the cortex program")
    parser.add_argument("--kills", type=int, default=10, help="how often the leader is killed (default 10)")
    parser.add_argument("--every", type=float, default=5, help="milliseconds between submissions (default 5)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any configuration key")
    options = parser.parse_args()
    if options.kills < 1:
        parser.error("--kills must be at least 1")

    with tempfile.TemporaryDirectory(prefix="cortex-failover-", ignore_cleanup_errors=True) as name:
        folder = pathlib.Path(name)
        # PostgreSQL may run under another account.
        folder.chmod(0o755)
        command = [options.binary, "dev", "--workers", "0", "--data-dir", str(folder / "data")]
        for flag in ("--http-port", "--grpc-port", "--peer-port"):
            command += [flag, "0"]
        for setting in options.set:
            command += ["--set", setting]
        with open(folder / "dev.log", "wb") as log:
            cluster = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            path = folder / "data" / "cluster.json"
            manifest = wait_for("the cluster runs", lambda: json.loads(path.read_text()))
            times = measure(options, folder, manifest)
        except SystemExit:
            print((folder / "dev.log").read_text(errors="replace")[-2000:], file=sys.stderr)
            raise
        finally:
            cluster.terminate()
            cluster.wait()
    print(summary(times))


if __name__ == "__main__":
    main()
