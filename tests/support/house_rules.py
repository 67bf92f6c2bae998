"""The rules of the code base, checked with `ast`; each yields its violations."""

import ast
import fnmatch
import pathlib
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDERS = ("fngrad", "experiments", "tests")
TOP_LEVEL = {
    *("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", ".ci", ".gitignore"),
    *("COMING_FROM.md", "RECIPES.md", *FOLDERS),
}

# A floor, the files and folders on it, and what they hold: the README's map is made
# of these rows, and a module imports from lower floors or from its own folder.
HOUSE = (
    (0, "types", "names of the values"),
    (
        0,
        "tree/",
        "pytrees as vectors (`vectors`), `paths`, what a mask or glob selects "
        "(`selection`), equal leaves stacked (`stacks`), `dtypes`",
    ),
    (
        0,
        "numerics/",
        "hyperparameters as data, checks, seeds, step `counters`, safe roots and "
        "powers (`arithmetic`), `norms`, `low_bit_codes`, `stochastic_rounding`, "
        "arrays from outside (`array_inputs`)",
    ),
    (
        0,
        "programs/",
        "`jaxprs` cut, counted (`operation_counts`), read on every line of JAX "
        "(`equations`); `signatures`, `step_wrappers`, `optional_imports`, "
        "`names_elsewhere`, `fingerprints`, `caller_warnings`",
    ),
    (
        0,
        "sharding/",
        "`meshes`, `rules` for which leaf is split over which axis, the `placement` of "
        "a state, `constraints` inside a program, rules of whole `matrices`",
    ),
    (
        1,
        "transforms/",
        "what belongs to no one method: `core` (`Transform`, `chain`, `report`), "
        "`scaling` (learning rates), `moment_arithmetic`, `momentum_buffers`, "
        "`polar_factors`, `clipping`, `decay`, `noise`, `masking` (groups, `freeze`), "
        "`depth`, `width` (muP), `projections`, `tunable_hyperparameters`, wrappers, "
        "`queries`, `evaluation_point`, `description`, `laws`",
    ),
    (1, "schedules/", "values per step: `decay`, `phases` (warm-up, restarts, joins)"),
    (
        1,
        "losses/",
        "losses per example: `classification`, `regression`, `overlap`, `ranking`, "
        "`embeddings`, `sequences`; `weighted_sums`; `core` (axes, masks, weights)",
    ),
    (
        1,
        "metrics/",
        "metrics that fold exactly: of classes, their `confusion` and `scores`, "
        "`correlation`, `ranking`, `images`, `language`; which fall or rise "
        "(`directions`)",
    ),
    (
        1,
        "layers/",
        "linear, conv, pooling, norms, attention, recurrent, embedding, combinators; "
        "`caching`, `tied`, `low_rank_adapters`; `layer_tree`, `summaries`",
    ),
    (
        1,
        "data/",
        "the `dataset` (its batches, the steps of an epoch), `epoch_order`, `maps`, "
        "what is read on the host (`sources`), `splitting`, `bundled` sets, files, "
        "`augmentations/`",
    ),
    (2, "optimizers/", "one method per file: state, transform, recipe; the `registry`"),
    (2, "models/", "one architecture per file"),
    (
        3,
        "training/",
        "a loss in any form and its gradient (`loss_forms`), its `precision`, `state`, "
        "`step` (`make_step`), `step_metrics`, what counts as `divergence`, "
        "`evaluation`, a run as one `scan`; gradients by `differences`, `evolution`",
    ),
    (
        3,
        "gradcheck/ backpropagation closed_form",
        "`check_gradients`, `taylor_test`; backpropagation layer by layer; "
        "`linear_regression`, `newton`",
    ),
    (
        3,
        "curvature/ landscapes/",
        "Hessian products, spectra, critical points, noise; surfaces, `descend`, "
        "`plot`",
    ),
    (
        4,
        "steps/",
        "steps that see the loss: `line_search` and its conditions, SAM "
        "(`sharpness_aware`), `polyak_step`, `least_squares`, `sophia`, `plateau`, "
        "`differentially_private`; `skipping`, `spikes`, `model_state_average`",
    ),
    (
        4,
        "postmortem/",
        "`autopsy`: the operation that made a step bad (`root_cause`), its layer and "
        "line (`source_locations`), its leaves and rows (`evidence`)",
    ),
    (
        5,
        "files/ distributed",
        "one writer per folder (`locks`), `atomic_writes`, JSON, local paths, compiled "
        "programs on disk (`compilation_cache`), `exported_programs`; processes, and "
        "what they agree on",
    ),
    (
        6,
        "checkpoint/",
        "a state on disk: `saving`, `reading`, `retention`, errors for another shape "
        "(`tree_matching`), checksums (`manifest`), writing in the background "
        "(`manager`), of several processes (`joint_writing`, `shards`), "
        "`safetensors_files`",
    ),
    (
        6,
        "logging/",
        "`history`, JSONL, CSV (`writers`), TensorBoard, W&B, trackio, MLflow, "
        "`histograms`, `plots`, `run_folder`, `manifest`, `progress`, `time_spent`",
    ),
    (
        7,
        "fitting/",
        "`fit` (`training_loop`) and its parts: `session`, `coordination` of "
        "processes, `inputs`, `step_checks`, `program_changes`, `mesh`, `hooks`, "
        "`best`, `intervals`, `loops`, `checkpointing`, `resume`, `validation`, "
        "`nonfinite`, `interrupts`",
    ),
    (
        7,
        "sweeps/",
        "how lanes run (`running/`: `block_width`, `storage`, `extension`), how points "
        "are drawn and searched (`searching/`), `results/` (`tables`, `statistics`, "
        "`pictures`)",
    ),
    (7, "accelerators/", "peaks of `chips`; what a step takes on a TPU not here"),
    (
        8,
        "callbacks commands/",
        "`max_minutes`, `profile`, `spike`, `images`, `histograms`; the command line, "
        "what run folders record (`run_records`)",
    ),
    (9, "__main__", "`python -m fngrad`"),
)
LAST_PURE_FLOOR = 4
IMPURE = {  # on a pure floor, with the reason
    "fngrad.data.files": "reads files",
    "fngrad.data.bundled": "reads scikit-learn's files",
    "fngrad.data.splitting": "permutes on the host, with a seeded generator",
}
FLOORS = {
    f"fngrad.{name.strip('/')}": floor
    for floor, names, _ in HOUSE
    for name in names.split()
}
FACE = max(FLOORS.values()) + 1  # fngrad/__init__.py
GROUND = 0  # one family: its folders may import each other

IMPURE_CALLS = {"print", "input", "open", "exec", "eval", "breakpoint"}
IMPURE_MODULES = {
    *("time", "datetime", "os", "pathlib", "io", "shutil", "tempfile", "glob"),
    *("random", "secrets", "uuid", "logging", "subprocess", "socket", "threading"),
}
ROOTS_THAT_COMPUTE = {"jax", "jnp", "lax"}
DECLARATIONS = ("jax.jit", "jax.vmap", "jax.custom_", "jax.tree_util.register_")
BANNED_LIBRARIES = ("optax", "flax")
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "base"}
MAX_FILE, MAX_FUNCTION = 400, 40

Complaints = Iterator[str]
Functions = ast.FunctionDef | ast.AsyncFunctionDef


def python_files(*folders: str) -> list[pathlib.Path]:
    return sorted(path for name in folders for path in (ROOT / name).rglob("*.py"))


def module_of(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _dotted(node: ast.AST) -> str:
    """Write ``a.b.c`` for nested attributes of a name, else the empty string."""
    if isinstance(node, ast.Attribute):
        inner = _dotted(node.value)
        return f"{inner}.{node.attr}" if inner else ""
    return node.id if isinstance(node, ast.Name) else ""


def imports_of(source: ast.AST, modules: set[str]) -> Iterator[tuple[int, str]]:
    """Yield (line, module) of every import; an imported name counts as its module."""
    for node in ast.walk(source):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield node.lineno, full if full in modules else str(node.module)


def floor_of(module: str) -> int | None:
    """Return the floor of the file or folder below ``fngrad`` that holds a module."""
    if module == "fngrad":
        return FACE
    return FLOORS.get(".".join(module.split(".")[:2]))


def floor_complaints(module: str, source: ast.AST, modules: set[str]) -> Complaints:
    own = floor_of(module)
    if own is None:
        yield f"{module} is on no floor: put it into the table and into the design"
        return
    for line, target in imports_of(source, modules):
        if target.partition(".")[0] != "fngrad":
            continue
        floor = floor_of(target)
        is_family = module.split(".")[:2] == target.split(".")[:2] or own == GROUND
        if floor is None:
            yield f"{module}:{line} imports {target}, which is on no floor"
        elif floor > own or (floor == own and not is_family):
            yield f"{module}:{line} on floor {own} imports {target} on floor {floor}"


def root_complaints(names: set[str]) -> Complaints:
    """Require that the package's root holds the table's entries and nothing else."""
    listed = {name for _, names_, _ in HOUSE for name in names_.split()}
    for name in sorted(names - listed):
        yield f"fngrad/{name} is not in the table"
    for name in sorted(listed - names):
        yield f"fngrad/{name} is in the table and is not there"


def map_of_the_house() -> str:
    """Return the README's map, a table in Markdown."""
    rows = ["| floor | module | what is there |", "|---|---|---|"]
    for floor, names, holds in HOUSE:
        shown = ", ".join(f"`{name}`" for name in names.split())
        rows.append(f"| {floor} | {shown} | {holds} |")
    return "\n".join(rows)


def circle_complaints(imports: dict[str, set[str]]) -> Complaints:
    """Remove leaves from the import graph until only circles are left."""
    left = dict(imports)
    while free := [m for m, targets in left.items() if not targets & left.keys()]:
        for module in free:
            del left[module]
    if left:
        yield f"modules import each other in a circle: {sorted(left)}"


def purity_complaints(module: str, source: ast.AST) -> Complaints:
    for line, target in imports_of(source, set()):
        is_impure = target.partition(".")[0] in IMPURE_MODULES
        if is_impure or target.startswith("numpy.random"):
            yield f"{module}:{line} imports {target}"
    for node in ast.walk(source):
        if isinstance(node, ast.Global):
            yield f"{module}:{node.lineno} has a global statement"
        if isinstance(node, ast.Call) and _dotted(node.func) in IMPURE_CALLS:
            yield f"{module}:{node.lineno} calls {_dotted(node.func)}"
        if _dotted(node) in ("np.random", "numpy.random"):
            yield f"{module} uses numpy.random"


def _nodes_at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Walk the code that runs at import: everything but the bodies of functions."""
    yield node
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        arguments = node.args
        defaults = [d for d in arguments.kw_defaults if d is not None]
        children = [*node.decorator_list, *arguments.defaults, *defaults]
    elif isinstance(node, ast.Lambda):
        children = []
    else:
        children = list(ast.iter_child_nodes(node))
    for child in children:
        yield from _nodes_at_import(child)


def computation_complaints(module: str, source: ast.AST) -> Complaints:
    """Forbid arrays at import: they would start a backend before the user chose one."""
    for node in _nodes_at_import(source):
        name = _dotted(node.func) if isinstance(node, ast.Call) else ""
        computes = name.partition(".")[0] in ROOTS_THAT_COMPUTE
        if computes and not name.startswith(DECLARATIONS):
            yield f"{module}:{getattr(node, 'lineno', 0)} calls {name} at import"


def import_style_complaints(module: str, source: ast.AST) -> Complaints:
    for node in ast.walk(source):
        if isinstance(node, ast.ImportFrom) and node.level > 0:
            yield f"{module}:{node.lineno} has a relative import"
        if isinstance(node, ast.Call) and node.args:
            name = getattr(node.args[0], "value", None)
            by_name = _dotted(node.func).rpartition(".")[2] in (
                *("import_extra", "import_module", "importorskip", "__import__"),
            )
            if by_name and str(name).partition(".")[0] in BANNED_LIBRARIES:
                yield f"{module}:{node.lineno} imports {name}"
    for line, target in imports_of(source, set()):
        if target.partition(".")[0] in BANNED_LIBRARIES:
            yield f"{module}:{line} imports {target}"


def warning_complaints(module: str, source: ast.AST) -> Complaints:
    """Require `caller_warnings.warn`, which finds the caller's line by itself."""
    for node in ast.walk(source):
        name = _dotted(node.func) if isinstance(node, ast.Call) else ""
        is_import = isinstance(node, ast.ImportFrom) and node.module == "warnings"
        if is_import or name.startswith("warnings.warn"):
            yield f"{module}:{getattr(node, 'lineno', 0)} warns past caller_warnings"


def _docstring(node: ast.AST) -> ast.Expr | None:
    body = getattr(node, "body", None)
    first = body[0] if isinstance(body, list) and body else None
    if not isinstance(first, ast.Expr) or not isinstance(first.value, ast.Constant):
        return None
    return first if isinstance(first.value.value, str) else None


def _is_overload(node: ast.AST) -> bool:
    decorators = getattr(node, "decorator_list", [])
    return any(_dotted(d).rpartition(".")[2] == "overload" for d in decorators)


def length_complaints(module: str, text: str) -> Complaints:
    """Count a function's lines without docstrings and blank lines."""
    lines = text.splitlines()
    if len(lines) > MAX_FILE:
        yield f"{module} has {len(lines)} lines, more than {MAX_FILE}"
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, Functions):
            continue
        strings = filter(None, (_docstring(n) for n in ast.walk(node)))
        unread = {i for s in strings for i in range(s.lineno, (s.end_lineno or 0) + 1)}
        body = range(node.body[0].lineno, (node.end_lineno or 0) + 1)
        count = sum(1 for i in body if i not in unread and lines[i - 1].strip())
        if count > MAX_FUNCTION:
            yield f"{module}:{node.lineno} {node.name} has {count} lines"


def docstring_complaints(module: str, source: ast.Module) -> Complaints:
    if source.body and not _docstring(source):
        yield f"{module} has no docstring"
    for node in source.body:
        if not isinstance(node, Functions | ast.ClassDef) or _is_overload(node):
            continue
        if not node.name.startswith("_") and not _docstring(node):
            yield f"{module}:{node.lineno} {node.name} has no docstring"


def reexport_complaints(package: str, source: ast.Module) -> Complaints:
    """Require that a folder's ``__init__`` holds imports and dunder names only."""
    for node in source.body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue  # imported later, or hidden from type checkers
        targets = node.targets if isinstance(node, ast.Assign) else []
        is_dunder = targets and all(_dotted(t).startswith("__") for t in targets)
        is_listing = isinstance(node, ast.FunctionDef) and node.name == "__dir__"
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_import = isinstance(node, ast.Import | ast.ImportFrom)
        if not (is_import or is_dunder or is_listing or is_text):
            yield f"{package}:{node.lineno} does more than re-export"


def name_complaints(path: pathlib.PurePath) -> Complaints:
    for part in path.parts:
        if part.removesuffix(".py").strip("_") in BANNED_NAMES:
            yield f"{path}: a file's name says what is in it, not {part}"


def top_level_complaints(names: set[str], ignored: list[str]) -> Complaints:
    for name in sorted(names - TOP_LEVEL - {".git"}):
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in ignored):
            yield f"{name} is not in the design's list of the top level"
