"""What could run foreign code, or reach where it should not, stands only where it is known and for a reason."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("lookalike", "service_kit", "embedder_service", "search_service", "workbench", "deploy/docker/healthcheck.py")
# Modules whose readers run what they read, or that XML bombs blow up.
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "torch", "yaml", "xml", "lxml"}
CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "tempfile.mktemp", "subprocess.getoutput"),
    *(
        "urllib.request.urlopen",
        "urllib.request.build_opener",
        "keras.models.load_model",
        "ssl._create_unverified_context",
    ),
    *("tensorflow.saved_model.load", "tf.saved_model.load", "shutil.unpack_archive"),
}
METHODS = {"extractall", "load_weights", "read_model"}
# (file, construct): why it may stand there.
ALLOWED = {
    ("embedder_service/model/weights.py", "pickle"): "one file, whose SHA-256 is pinned, by an unpickler of four names",
    ("workbench/peers.py", "pickle"): "writes a model to tell its size; nothing is read",
    ("embedder_service/model/network.py", "urllib.request.urlopen"): "a HEAD of a pinned https address",
    ("embedder_service/model/network.py", "load_weights"): "arrays of an HDF5 file that the operator gives",
    ("embedder_service/runtimes/openvino.py", "read_model"): "the bundle, which the operator trusts as code",
    ("embedder_service/model/feature_graph.py", "read_model"): "likewise",
    ("embedder_service/model/build.py", "read_model"): "what was written just now",
    ("embedder_service/runtimes/tensorflow.py", "tf.saved_model.load"): "the bundle, likewise",
    ("workbench/download.py", "urllib.request.urlopen"): "a pinned https address, checked before use",
    ("workbench/loadtest/prometheus.py", "urllib.request.urlopen"): "addresses that the user gives",
    ("workbench/sources.py", "urllib.request.build_opener"): "servers that the user names, redirects included",
}


def _found(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if module.partition(".")[0] in MODULES:
                yield module
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if name in CALLS:
                yield name
            elif isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
                yield node.func.attr
            elif isinstance(node.func, ast.Name) and node.func.id in METHODS:
                yield node.func.id
            if name.endswith("np.load") and given.get("allow_pickle") != "False":
                yield "np.load"
            if given.get("shell", "False") != "False":
                yield "shell=True"
            if given.get("verify") == "False":
                yield "verify=False"


def test_what_runs_foreign_code_or_fetches_stands_only_where_it_is_allowed() -> None:
    files = [
        file for room in ROOMS for file in ([ROOT / room] if room.endswith(".py") else (ROOT / room).rglob("*.py"))
    ]
    assert len(files) > 150
    found = {(str(file.relative_to(ROOT)), what) for file in files for what in _found(ast.parse(file.read_text()))}
    assert found == ALLOWED.keys()


def test_each_construct_is_recognised() -> None:
    samples = {
        "import pickle": "pickle",
        "from xml.etree import ElementTree": "xml.etree",
        "eval(text)": "eval",
        "os.system(text)": "os.system",
        "subprocess.run(text, shell=True)": "shell=True",
        "np.load(path)": "np.load",
        "np.load(path, allow_pickle=True)": "np.load",
        "tar.extractall(folder)": "extractall",
        "urllib.request.urlopen(url)": "urllib.request.urlopen",
        "requests.get(url, verify=False)": "verify=False",
    }
    assert {text: list(_found(ast.parse(text))) for text in samples} == {text: [what] for text, what in samples.items()}
    for harmless in (
        "np.load(path, allow_pickle=False)",
        "re.compile(text)",
        "model.eval()",
        "tar.extractfile(member)",
    ):
        assert list(_found(ast.parse(harmless))) == []
