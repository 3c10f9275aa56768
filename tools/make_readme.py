"""Write README.md from index.ipynb: text as it is, code in fences, text outputs indented, hidden cells left out;
and the still of the moving picture, which README.md shows"""

import json, re, sys
from pathlib import Path
from textwrap import indent

NOTE = "<!-- Made from index.ipynb by `make export`: edit the notebook, not this file -->"
DIRECTIVE = re.compile(r"\s*#\s*\|")
RICH = "widget", "javascript"  # these have no useful text; tables and charts do


def text_output(o):
    "What an output says in plain text: a chart says its description; nothing for a widget or for stderr"
    if o["output_type"] == "stream":
        return "".join(o["text"]) if o["name"] == "stdout" else ""
    data = o.get("data", {})
    return "" if any(r in k for r in RICH for k in data) else "".join(data.get("text/plain", ""))


def code_parts(cell):
    "Fenced source and indented outputs of a code cell, without directive lines"
    lines = "".join(cell["source"]).splitlines()
    flags = {re.sub(r"[\s:]+", " ", DIRECTIVE.sub("", o)).strip() for o in lines if DIRECTIVE.match(o)}
    if flags & {"hide", "include false"}:
        return
    src = "\n".join(o for o in lines if not DIRECTIVE.match(o)).strip("\n")
    if src and "echo false" not in flags:
        yield f"```python\n{src}\n```"
    if "output false" in flags:
        return
    for o in cell.get("outputs", []):
        if words := "".join(o.get("data", {}).get("text/markdown", "")).strip("\n"):
            yield words
            continue
        txt = text_output(o).strip("\n")
        if txt.strip():
            yield indent("\n".join(map(str.rstrip, txt.splitlines())), "    ")


def readme(nb):
    "Markdown text of the notebook `nb`, a dict"
    parts = [NOTE]
    for c in nb["cells"]:
        if c["cell_type"] == "markdown":
            parts.append("".join(c["source"]).strip("\n"))
        elif c["cell_type"] == "code":
            parts += code_parts(c)
    return "\n\n".join(filter(None, parts)) + "\n"


def write_stills(root):
    "The picture at one factor, light and dark, from the stored study"
    from talking_heads.site.picture import still_svg, stored_picture

    for look in ("light", "dark"):
        dest, new = root / "nbs" / f"picture-{look}.svg", still_svg(stored_picture(), look)
        if not dest.exists() or dest.read_text(encoding="utf-8") != new:
            dest.write_text(new, encoding="utf-8")


def main(root):
    "Write README.md in `root` if it changes, and the stills where they are shown"
    src, dest = root / "index.ipynb", root / "README.md"
    if not src.exists():
        return print("README.md: no index.ipynb yet, skipped")
    new = readme(json.loads(src.read_text(encoding="utf-8")))
    if not dest.exists() or dest.read_text(encoding="utf-8") != new:
        dest.write_text(new, encoding="utf-8")
    if "nbs/picture-light.svg" in new:
        write_stills(root)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
