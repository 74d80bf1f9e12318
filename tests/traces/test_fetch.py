"""Fetching from a local server: what is verified, what each failure says, and that it leaves nothing behind."""

import gzip
import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from simkv.errors import TraceError
from simkv.traces import fetch
from simkv.traces.fetch import MIRROR_VARIABLE, TraceFile, TraceSource, fetch_trace, list_traces, registry
from simkv.traces.formats import FORMATS

BODY = b"one line of a trace\n" * 10_000
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
SHA256 = hashlib.sha256(BODY).hexdigest()
BLOB = hashlib.sha1(b"blob %d\0" % len(BODY) + BODY).hexdigest()


class Upstream:
    """A web server on this machine: path -> (status, body, bytes promised)."""

    def __init__(self) -> None:
        self.pages: dict[str, tuple[int, bytes, int]] = {}
        self.asked: list[str] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, self))
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"

    def serve(self, path: str, body: bytes, *, status: int = 200, promised: int | None = None) -> None:
        """Answer ``path`` with ``body``, announcing ``promised`` bytes."""
        self.pages[path] = (status, body, len(body) if promised is None else promised)


class Handler(BaseHTTPRequestHandler):
    def __init__(self, upstream: Upstream, *args: object) -> None:
        self.upstream = upstream
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self.upstream.asked.append(self.path)
        status, body, promised = self.upstream.pages.get(self.path, (404, b"", 0))
        self.send_response(status)
        self.send_header("Content-Length", str(promised))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Stay silent."""


@pytest.fixture
def upstream(monkeypatch: pytest.MonkeyPatch) -> Iterator[Upstream]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)
    served = Upstream()
    thread = threading.Thread(target=served.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield served
    served.server.shutdown()
    served.server.server_close()
    thread.join()


def source(base: str | None, *names: str, **facts: object) -> dict[str, TraceSource]:
    """A registry of one trace, ``toy``, whose files all have the same facts."""
    files = dict.fromkeys(names or ("toy.jsonl",), TraceFile.model_validate(facts))
    toy = TraceSource(name="toy", format="mooncake", licence="MIT", what="a toy", reuse=True, base=base, files=files)
    return {"toy": toy}


def left_behind(folder: Path) -> list[Path]:
    return list(folder.rglob("*"))


@pytest.mark.parametrize(
    "facts",
    [{"sha256": SHA256}, {"git_blob_sha1": BLOB}, {"sha256": SHA256, "git_blob_sha1": BLOB, "size_bytes": len(BODY)}],
)
def test_a_file_with_a_known_checksum_is_fetched_once(
    upstream: Upstream, tmp_path: Path, facts: dict[str, object]
) -> None:
    """SHA-256, the git blob id, or both verify a file; a second fetch does not ask the server."""
    upstream.serve("/toy.jsonl", BODY)
    known = source(upstream.address + "/", **facts)
    path = fetch_trace("toy", tmp_path, known=known)
    assert tmp_path / "toy" / "toy.jsonl" == path
    assert BODY == path.read_bytes()
    assert path == fetch_trace("toy", tmp_path, progress=True, known=known)
    assert ["/toy.jsonl"] == upstream.asked
    assert [path.parent, path] == left_behind(tmp_path)


def test_a_damaged_file_is_fetched_again(upstream: Upstream, tmp_path: Path) -> None:
    """A file in the cache that fails its checksum is replaced."""
    upstream.serve("/toy.jsonl", BODY)
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "toy.jsonl").write_bytes(b"damaged")
    assert BODY == fetch_trace("toy", tmp_path, known=source(upstream.address + "/", sha256=SHA256)).read_bytes()


def test_several_files_come_back_as_a_folder(upstream: Upstream, tmp_path: Path) -> None:
    """A trace of several files is one folder, and only what is missing is asked for; a bar may be drawn."""
    known = source(upstream.address + "/", "a.json", "b.json", sha256=SHA256)
    for name in ("/a.json", "/b.json"):
        upstream.serve(name, BODY)
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "a.json").write_bytes(BODY)
    assert tmp_path / "toy" == fetch_trace("toy", tmp_path, progress=True, known=known)
    assert ["/b.json"] == upstream.asked
    assert ["a.json", "b.json"] == sorted(path.name for path in (tmp_path / "toy").iterdir())


def test_a_mirror_takes_the_place_of_the_registered_address(
    upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The option and the environment variable name a server of <trace>/<file>, also where no address is registered."""
    upstream.serve("/cache/toy/toy.jsonl", BODY)
    known = source(None, sha256=SHA256)
    assert BODY == fetch_trace("toy", tmp_path / "a", mirror=upstream.address + "/cache/", known=known).read_bytes()
    monkeypatch.setenv(MIRROR_VARIABLE, upstream.address + "/cache")
    assert BODY == fetch_trace("toy", tmp_path / "b", known=known).read_bytes()
    with pytest.raises(TraceError, match="must be an address that begins with http"):
        fetch_trace("toy", tmp_path / "c", mirror="file:///etc", known=known)
    monkeypatch.delenv(MIRROR_VARIABLE)
    with pytest.raises(TraceError, match="toy: no address is registered"):
        fetch_trace("toy", tmp_path / "c", known=known)


@pytest.mark.parametrize(
    ("body", "facts", "says"),
    [
        (BODY + b"!", {"sha256": SHA256}, "its SHA-256 is [0-9a-f]{64}, expected " + SHA256),
        (BODY + b"!", {"git_blob_sha1": BLOB}, "its git blob SHA-1 is [0-9a-f]{40}, expected " + BLOB),
        (BODY + b"!", {"size_bytes": len(BODY), "sha256": SHA256}, "sent more than the 200000 bytes expected"),
        (BODY[:-1], {"size_bytes": len(BODY), "sha256": SHA256}, "it has 199999 bytes, expected 200000"),
        (b"", {"size_bytes": len(BODY), "sha256": SHA256}, "it has 0 bytes, expected 200000"),
        (POINTER, {"size_bytes": len(BODY), "sha256": SHA256}, "Git LFS pointer instead of the data"),
        (POINTER, {"git_blob_sha1": BLOB}, "Git LFS pointer instead of the data"),
    ],
)
def test_what_is_not_the_trace_is_refused(
    upstream: Upstream, tmp_path: Path, body: bytes, facts: dict[str, object], says: str
) -> None:
    """A wrong checksum, size or a pointer is one line naming trace, file and address, and nothing stays on disk."""
    upstream.serve("/toy.jsonl", body)
    with pytest.raises(TraceError, match=says) as caught:
        fetch_trace("toy", tmp_path, known=source(upstream.address + "/", **facts))
    assert str(caught.value).startswith(f"toy/toy.jsonl: not fetched from {upstream.address}/toy.jsonl: ")
    assert "\n" not in str(caught.value)
    assert [] == left_behind(tmp_path)


def test_failures_of_the_network_are_one_line(upstream: Upstream, tmp_path: Path) -> None:
    """An HTTP error, a connection cut short and a refused one each become a TraceError and leave nothing."""
    upstream.serve("/broken.jsonl", b"", status=500)
    upstream.serve("/short.jsonl", BODY, promised=len(BODY) + 10)
    for name, says in (("gone.jsonl", "404"), ("broken.jsonl", "500"), ("short.jsonl", "toy/short.jsonl: not fetched")):
        with pytest.raises(TraceError, match=says) as caught:
            fetch_trace("toy", tmp_path, known=source(upstream.address + "/", name, sha256=SHA256))
        assert "\n" not in str(caught.value)
    upstream.server.shutdown()
    upstream.server.server_close()
    with pytest.raises(TraceError, match=r"toy/toy\.jsonl: not fetched from"):
        fetch_trace("toy", tmp_path, known=source(upstream.address + "/", sha256=SHA256))
    assert [] == left_behind(tmp_path)


def test_a_body_of_unknown_size_is_bounded(upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a registered size the download stops at the general limit."""
    monkeypatch.setattr(fetch, "_MAX_BYTES", len(BODY) - 1)
    upstream.serve("/toy.jsonl", BODY)
    with pytest.raises(TraceError, match="sent more than the 199999 bytes expected"):
        fetch_trace("toy", tmp_path, known=source(upstream.address + "/", sha256=SHA256))
    assert [] == left_behind(tmp_path)


def test_a_folder_that_cannot_be_written_is_one_line(upstream: Upstream, tmp_path: Path) -> None:
    """A file where the folder should be is reported like any other failure."""
    (tmp_path / "toy").write_text("in the way")
    with pytest.raises(TraceError, match=r"toy/toy\.jsonl: not fetched"):
        fetch_trace("toy", tmp_path, known=source(upstream.address + "/", sha256=SHA256))
    assert "in the way" == (tmp_path / "toy").read_text()


def test_a_failed_file_does_not_take_the_others_with_it(upstream: Upstream, tmp_path: Path) -> None:
    """Of a trace of several files those already verified stay, so that a second try goes on from there."""
    upstream.serve("/a.json", BODY)
    with pytest.raises(TraceError, match="404"):
        fetch_trace("toy", tmp_path, known=source(upstream.address + "/", "a.json", "b.json", sha256=SHA256))
    assert [tmp_path / "toy", tmp_path / "toy" / "a.json"] == left_behind(tmp_path)


def test_the_real_trace_passes_the_shipped_registry(upstream: Upstream, tmp_path: Path, shared_traces: Path) -> None:
    """Served by a mirror, the Mooncake conversation trace has the registered size, SHA-256 and git blob id."""
    body = gzip.decompress((shared_traces / "mooncake" / "conversation_trace.jsonl.gz").read_bytes())
    upstream.serve("/mooncake-conversation/conversation_trace.jsonl", body)
    assert body == fetch_trace("mooncake-conversation", tmp_path, mirror=upstream.address).read_bytes()


def test_without_a_checksum_the_user_must_say_so(upstream: Upstream, tmp_path: Path) -> None:
    """A file that cannot be verified is fetched on explicit demand only."""
    upstream.serve("/toy.jsonl", BODY)
    known = source(upstream.address + "/")
    with pytest.raises(TraceError, match=r"no checksum is known for toy\.jsonl; pass allow_unverified"):
        fetch_trace("toy", tmp_path, known=known)
    assert [] == upstream.asked
    assert BODY == fetch_trace("toy", tmp_path, allow_unverified=True, known=known).read_bytes()


def test_an_unknown_trace_names_the_nearest() -> None:
    """A misspelt name is answered with the registered one."""
    with pytest.raises(TraceError, match="did you mean 'mooncake-conversation'"):
        fetch_trace("mooncake-conversatoin")


def test_the_shipped_registry_is_whole() -> None:
    """Every row has a known format and a licence, pinned addresses, and the checksums that are known."""
    known = registry()
    assert set(known) >= {"mooncake-conversation", "bailian-coder", "azure-2023-conv", "burstgpt-1", "weka-agentic"}
    assert {row.format for row in known.values()} <= set(FORMATS)
    assert {"Apache-2.0", "CC-BY-4.0", "MIT"} == {row.licence for row in known.values()}
    assert 240 == len(known["weka-agentic"].files)
    conversation = known["mooncake-conversation"].files["conversation_trace.jsonl"]
    assert (3_029_533, "5a371794b81d7fc7487ec8a02a2c631bcc7fbdf8") == (
        conversation.size_bytes,
        conversation.git_blob_sha1,
    )
    for row in known.values():
        large = row.base is not None and row.name.startswith("bailian")
        assert large == bool(row.base and row.base.startswith("https://media.githubusercontent.com/media/"))


def test_the_table_of_traces_says_how_each_is_fetched() -> None:
    """One row per trace, with unknown sizes missing rather than zero."""
    table = list_traces().set_index("name")
    assert list(registry()) == list(table.index)
    assert "verified" == table.loc["mooncake-toolagent", "fetch"]
    assert "unverified" == table.loc["azure-2024-code", "fetch"]
    assert "manual" == table.loc["bailian-trace-a", "fetch"]
    assert 149_158_158 == table.loc["weka-agentic", "size_bytes"]
    assert table["size_bytes"].isna()["mooncake-toolagent"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("toy = 3", "toy must be a table"),
        ("[toy", "cannot read the registry"),
        ("[toy]\nformat = 'x'", "toy.licence: Field required"),
        ("{ok}size = 3", "toy.files.size"),
        ("{ok}'../a' = {{}}", r"toy.files.../a.\[key\]: String should match"),
        ("{ok}a = {{ sha256 = 'ab' }}", "toy.files.a.sha256: String should match"),
        ("{ok}a = {{ size_bytes = -1 }}", "toy.files.a.size_bytes: Input should be greater"),
        ("{ok}a = {{ md5 = '' }}", "toy.files.a.md5: Extra inputs"),
        ("{ok}", "toy.files: Dictionary should have at least 1 item"),
    ],
)
def test_a_malformed_registry_names_file_and_key(tmp_path: Path, text: str, says: str) -> None:
    """Whatever is wrong with a registry is one line with the file and the key."""
    path = tmp_path / "registry.toml"
    ok = "[toy]\nformat = 'x'\nlicence = 'x'\nwhat = 'x'\nreuse = true\nbase = 'http://h/'\n[toy.files]\n"
    path.write_text(text.replace("{ok}", ok).replace("{{", "{").replace("}}", "}"))
    with pytest.raises(TraceError, match=says) as caught:
        registry(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_registry_that_is_missing_or_too_large_is_refused(tmp_path: Path) -> None:
    """Size is checked before the file is read."""
    with pytest.raises(TraceError, match="cannot read the registry"):
        registry(tmp_path / "none.toml")
    path = tmp_path / "registry.toml"
    path.write_bytes(b"#" * ((4 << 20) + 1))
    with pytest.raises(TraceError, match="larger than 4194304 bytes"):
        registry(path)
