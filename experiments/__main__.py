"""List the experiments, or run one.

Command:  python -m experiments                    (the list, with claims and minutes)
          python -m experiments momentum --help    (an experiment's own options)
"""

import ast
import runpy
import sys
import textwrap
from pathlib import Path

FOLDER = Path(__file__).parent
# Modules that experiments share.
TOOLS = {
    "character_ngrams",
    "critical_points",
    "meshes",
    "noise_floors",
    "outputs",
    "races",
}
TOOLS |= {"cold_start_networks", "cold_start_scripts", "launch", "timing"}
NOTEBOOKS = (
    ("tutorial", "from a gradient by hand to a sweep"),
    ("colab_tpu", "on a TPU of Colab, with checkpoints on Google Drive"),
    ("kaggle_tpu", "on the eight TPU devices of Kaggle"),
)


def experiments() -> dict[str, str]:
    """Return the docstring of every experiment and benchmark by its name."""
    paths = sorted(FOLDER.glob("*.py")) + sorted(FOLDER.glob("benchmarks/*.py"))
    found = {}
    for path in paths:
        name = ".".join(path.relative_to(FOLDER).with_suffix("").parts)
        if not (path.stem.startswith("_") or path.stem in TOOLS):
            source = path.read_text(encoding="utf-8")
            found[name] = ast.get_docstring(ast.parse(source)) or ""
    return found


def entry(docstring: str, word: str) -> str:
    """Return a docstring's entry after ``word:`` as one line, or an empty string."""
    lines = iter(docstring.splitlines())
    for line in lines:
        if line.startswith(f"{word}:"):
            words = [line.removeprefix(f"{word}:").strip()]
            for more in lines:
                if not more.strip() or (not more[0].isspace() and ":" in more[:12]):
                    break
                words.append(more.strip())
            return " ".join(words)
    return ""


def listing() -> str:
    """Write every experiment's name, claim and minutes."""
    lines = ["python -m experiments NAME [options] runs one of", ""]
    for name, docstring in experiments().items():
        claim = entry(docstring, "Claim") or docstring.splitlines()[0]
        lines.append(name)
        lines.append(textwrap.indent(_wrapped(claim), "    "))
        minutes = entry(docstring, "Minutes")
        lines += [f"    minutes: {minutes}"] if minutes else []
    lines += ["", *(f"{name}.ipynb, a notebook: {what}" for name, what in NOTEBOOKS)]
    return "\n".join(lines)


def _wrapped(text: str) -> str:
    return textwrap.fill(text[:1].upper() + text[1:], 80, break_on_hyphens=False)


def main(arguments: list[str]) -> None:
    """Run the experiment that the first argument names, else show the list."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(listing())
        return
    name = arguments[0].replace("/", ".").removesuffix(".py")
    if name not in experiments():
        known = "\n".join(sorted(experiments()))
        raise SystemExit(f"need one of these, got {name!r}:\n{known}")
    path = str(FOLDER / f"{name.replace('.', '/')}.py")
    sys.argv = [path, *arguments[1:]]
    runpy.run_path(path, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
