"""Writes down what a build found out: the process types and what else a release of it needs.

usage: release.py BUILD_DIR META_DIR NAME RUN_PACKAGES

Reads META_DIR/release.N.yml (what bin/release of each pack said), BUILD_DIR/Procfile and META_DIR/layers;
writes META_DIR/release.json for the platform and BUILD_DIR/.heroku/process_types, in the Procfile's form, for
the process that starts in the container. The Procfile wins over what packs suggest, and a later pack over an
earlier one. A Procfile is no YAML: its commands may contain ": " and anything else.
"""

import json
import pathlib
import re
import sys

TYPE = re.compile(r"^([A-Za-z0-9_-]{1,64})\s*:\s*(.+?)\s*$")


def procfile_types(path):
    types = {}
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except FileNotFoundError:
        return types
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = TYPE.match(line.strip())
        if found is None:
            refuse(
                f'Line {number} of the Procfile is not of the form "type: command":',
                f"  {line.strip()[:100]}",
            )
        types[found[1]] = found[2]
    return types


def suggested(meta):
    types, config = {}, {}
    for path in sorted(meta.glob("release.*.yml")):
        text = path.read_text(errors="replace")
        if not text.strip():
            continue
        # Only here, because most packs suggest nothing and importing it costs as much as all the rest.
        import yaml

        try:
            release = yaml.safe_load(text) or {}
        except yaml.YAMLError as error:
            refuse("The buildpack's bin/release wrote no valid YAML:", f"  {error}".replace("\n", " "))
        if not isinstance(release, dict):
            continue
        types.update(release.get("default_process_types") or {})
        config.update(release.get("config_vars") or {})
    return types, {str(name): str(value) for name, value in config.items()}


def refuse(*lines):
    for line in ("", *lines, ""):
        print(f" !     {line}".rstrip(), file=sys.stderr)
    sys.exit(1)


def main(build, meta, name, run_packages):
    defaults, config = suggested(meta)
    declared = procfile_types(build / "Procfile")
    types = {str(kind): " ".join(str(command).split("\n")).strip() for kind, command in {**defaults, **declared}.items()}
    added = [kind for kind in types if kind not in declared]
    if declared:
        print(f"       Procfile declares types -> {', '.join(sorted(declared))}")
    if added:
        print(f"       Default types for {name} -> {', '.join(sorted(added))}")
    if not types:
        print("       None found: this release starts no process by itself. A Procfile declares them,")
        print("       for example: web: ./server --port $PORT")
    kept = build / ".heroku"
    kept.mkdir(exist_ok=True)
    (kept / "process_types").write_text("".join(f"{kind}: {command}\n" for kind, command in sorted(types.items())))
    layers = (meta / "layers").read_text().split()
    release = {
        "buildpack": name,
        "process_types": types,
        "config_vars": config,
        "packages": run_packages.split(),
        "layers": layers,
    }
    (meta / "release.json").write_text(json.dumps(release, indent=2) + "\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3], sys.argv[4])
