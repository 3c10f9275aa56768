"What all tests share: no network, the `slow` mark, and reference files that may lie beside the checkout"

import os
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub, which reads it once


def pytest_configure(config):
    """Make the marks known, and let Ctrl-C reach the tests that need it even in a background job,
    which starts with it ignored"""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "slow: takes more than a few seconds; `-m 'not slow'` leaves it out")


@pytest.fixture(scope="session")
def shared():
    "The folder of reference files beside the checkout"
    path = Path(__file__).resolve().parents[2] / "shared"
    if not path.is_dir():
        pytest.skip("no folder `shared` with reference files beside the checkout")
    return path


@pytest.fixture(scope="session")
def chrome():
    "One browser for every test that draws: a second one cannot start in the same thread"
    from browser import BrowserError, browser

    try:
        with browser() as b:
            yield b
    except BrowserError as e:
        pytest.skip(str(e))


@pytest.fixture
def called(capsys):
    "Call a command: its exit code, and what was said"

    def call(command, *args, **kw):
        code = 0
        try:
            command(*args, **kw)
        except SystemExit as e:
            code = e.code
        out = capsys.readouterr()
        return code, out.out + out.err

    return call
