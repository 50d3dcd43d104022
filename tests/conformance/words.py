"""The words of tickmesh/executor/inprocess.py as a program, for a sandbox in a real image."""

import os
import signal
import sys
import time


def run(word: str, argument: str) -> None:
    match word:
        case "print":
            print(argument + "\n", end="", flush=True)  # unbuffered: two writes would be two chunks
        case "error":
            print(argument + "\n", end="", file=sys.stderr, flush=True)
        case "env":
            print(os.environ.get(argument, ""), flush=True)
        case "payload":
            print(sys.stdin.read(), end="", flush=True)
        case "sleep":
            time.sleep(float(argument))
        case "ignore":
            signal.signal(int(argument), signal.SIG_IGN)
        case "exit":
            sys.exit(int(argument))
        case "fail":
            if int(os.environ["TICKMESH_ATTEMPT"]) <= int(argument):
                sys.exit(1)
        case "signal":
            signal.signal(int(argument), signal.SIG_DFL)
            os.kill(os.getpid(), int(argument))
        case "oom":
            hog = []
            while True:
                hog.append(os.urandom(1 << 20))


step: list[str] = []
for argument in [*sys.argv[1:], ";"]:
    if argument != ";":
        step.append(argument)
    elif step:
        run(step[0], " ".join(step[1:]))
        step = []
