"Packaging: everything is read from settings.ini, which nbdev reads too"
import json
import shlex
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

root = Path(__file__).resolve().parent
config = ConfigParser(delimiters=["="])
config.read(root/"settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]
lib, readme = cfg["lib_name"], root/"README.md"
scripts = [o.strip() for o in cfg.get("console_scripts", "").splitlines() if o.strip()]
statuses = {"1": "1 - Planning", "2": "2 - Pre-Alpha", "3": "3 - Alpha", "4": "4 - Beta", "5": "5 - Production/Stable"}

class BuildWithNotebooks(build_py):
    "Put the notebooks that th_paper runs into the package that is built, without outputs; a checkout uses its own"
    def run(self):
        super().run()
        if self.editable_mode: return
        to = Path(self.build_lib)/lib/"notebooks"
        to.mkdir(parents=True, exist_ok=True)
        for name in ("paper", "paper_weights"):
            nb = json.loads((root/"nbs"/"paper"/f"{name}.ipynb").read_text(encoding="utf-8"))
            for c in nb["cells"]:
                if c["cell_type"] == "code": c.update(outputs=[], execution_count=None)
            (to/f"{name}.ipynb").write_text(json.dumps(nb, indent=1, ensure_ascii=False)+"\n", encoding="utf-8")

setup(
    name=lib,
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    license={"apache2": "Apache-2.0"}.get(cfg["license"], cfg["license"]),
    keywords=cfg["keywords"],
    classifiers=[f"Development Status :: {statuses[cfg['status']]}", f"Intended Audience :: {cfg['audience']}",
                 f"Natural Language :: {cfg['language']}", "Programming Language :: Python :: 3"],
    python_requires=f">={cfg['min_python']}",
    packages=find_packages(include=[lib, lib+".*"]),
    # toy models, stored tables, prose, sweeps, JavaScript
    package_data={lib: ["models/*", "models/*/*", "texts/*", "sweep_files/*", "assets/*"]},
    install_requires=shlex.split(cfg.get("requirements", "")),
    extras_require={o: shlex.split(cfg.get(f"{o}_requirements", "")) for o in ("dev", "dask")},
    entry_points={"console_scripts": scripts, "nbdev": [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"]},
    zip_safe=False,
    cmdclass={"build_py": BuildWithNotebooks},
)
