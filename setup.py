"Packaging: everything is read from settings.ini, which nbdev reads too"
import shlex
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

root = Path(__file__).resolve().parent
config = ConfigParser(delimiters=["="])
config.read(root/"settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]
lib, readme = cfg["lib_name"], root/"README.md"
scripts = [o.strip() for o in cfg.get("console_scripts", "").splitlines() if o.strip()]
statuses = {"1": "1 - Planning", "2": "2 - Pre-Alpha", "3": "3 - Alpha", "4": "4 - Beta", "5": "5 - Production/Stable"}

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
    package_data={lib: ["models/*", "models/*/*", "texts/*", "sweep_files/*"]}, # the toy models, stored tables, ordinary prose, ready sweeps
    install_requires=shlex.split(cfg.get("requirements", "")),
    extras_require={o: shlex.split(cfg.get(f"{o}_requirements", "")) for o in ("dev", "dask")},
    entry_points={"console_scripts": scripts, "nbdev": [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"]},
    zip_safe=False,
)
