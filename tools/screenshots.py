"Build the site and take every page light, dark and on a telephone's width: `python tools/screenshots.py FOLDER`"

import sys
import tempfile
from pathlib import Path

from browser import BrowserError, take_screenshots
from talking_heads.base.core import TalkingHeadsError
from talking_heads.site.docs import build_docs

ROOT = Path(__file__).resolve().parent.parent


def main(folder: str) -> None:
    "Put the pictures into `folder`"
    with tempfile.TemporaryDirectory() as tmp:
        shots = take_screenshots(build_docs(ROOT, Path(tmp) / "site"), Path(folder))
    print(f"{folder}: {len(shots)} pictures")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        main(sys.argv[1])
    except (BrowserError, TalkingHeadsError) as e:
        sys.exit(str(e))
