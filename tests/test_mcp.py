"""The server for agents: paths beneath its root, errors in one line, and JSON-RPC over pipes."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pcdiff
from pcdiff.cli.mcp_server import beneath, records, server_of
from pcdiff.errors import InputError
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import write_volume

Call = Callable[..., dict[str, Any]]


def test_paths_lie_beneath_the_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "dicom").mkdir(parents=True)
    (tmp_path / "secret.nrrd").touch()
    (root / "link.nrrd").symlink_to(tmp_path / "secret.nrrd")
    (root / "same.nrrd").symlink_to(root / "a.nrrd")
    assert beneath(root, "a.nrrd") == root / "a.nrrd"
    assert beneath(root, "same.nrrd") == root / "a.nrrd"
    assert beneath(root, "dicom") == root / "dicom"
    for text in ("../secret.nrrd", str(tmp_path / "secret.nrrd"), "link.nrrd", "dicom/../../secret.nrrd"):
        with pytest.raises(InputError, match="leads out"):
            beneath(root, text)
    (root / "dicom" / "1.dcm").symlink_to(tmp_path / "secret.nrrd")
    with pytest.raises(InputError, match="without links out of the server's root"):
        beneath(root, "dicom")


def test_an_error_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^pcdiff: .*missing\.nrrd.*") as raised:
        asyncio.run(records(["info", str(tmp_path / "missing.nrrd"), "--json"]))
    assert "\n" not in str(raised.value)


def test_it_needs_a_folder_and_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="expected a folder"):
        server_of(tmp_path / "missing")
    monkeypatch.setitem(sys.modules, "mcp.server.mcpserver", None)
    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(InputError, match=r"\[mcp\]"):
        server_of(tmp_path)


@pytest.fixture
def call(tmp_path: Path) -> Iterator[Call]:
    """A request of JSON-RPC to a server whose root is `tmp_path / "root"` -> its result."""
    pytest.importorskip("mcp.server.mcpserver")
    (tmp_path / "root").mkdir()
    command = [sys.executable, "-m", "pcdiff", "mcp", str(tmp_path / "root")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin
        assert server.stdout
        stdin, stdout = server.stdin, server.stdout

        def send(message: dict[str, Any]) -> None:
            stdin.write(json.dumps({"jsonrpc": "2.0"} | message) + "\n")
            stdin.flush()

        def call(method: str, **parameters: Any) -> dict[str, Any]:
            send({"id": 1, "method": method, "params": parameters})
            answer = json.loads(stdout.readline())
            assert answer["id"] == 1
            return dict(answer["result"])

        client = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
        assert call("initialize", **client)["serverInfo"] == {"name": "pcdiff", "version": pcdiff.__version__}
        send({"method": "notifications/initialized"})
        yield call
        stdin.close()
        assert server.wait(20) == 0


def test_the_tools_over_pipes(call: Call, case: tuple[Volume, Volume], tmp_path: Path) -> None:
    tools = {tool["name"]: tool for tool in call("tools/list")["tools"]}
    assert tools.keys() == {"info", "design", "check", "score"}
    assert tools["design"]["inputSchema"]["required"] == ["scan", "out"]

    def use(name: str, **arguments: Any) -> tuple[bool, Any]:
        answer = call("tools/call", name=name, arguments=arguments)
        return not answer.get("isError", False), answer.get("structuredContent") or answer["content"][0]["text"]

    good, found = use("info")
    assert good
    assert found["methods"]["unet"]["ready"] is True
    for name, volume in (("skull", case[0]), ("implant", case[1])):
        write_volume(volume, tmp_path / "root" / f"{name}.nrrd")
    good, found = use("check", implant="implant.nrrd", skull="skull.nrrd")
    assert good
    assert {check["name"] for check in found["checks"]} >= {"complete", "printable"}
    given = {"scan": "skull.nrrd", "out": "out", "method": "prior", "report": False}
    good, found = use("design", **given, engrave="OP-7", fixation=2)
    assert good
    assert [each["text"] for each in found["fitting"]["engraved"]] == ["OP-7"]
    assert len(found["fixation"]) == 2
    assert found["folder"] == str(tmp_path / "root" / "out" / "skull")
    assert (tmp_path / "root" / "out" / "skull" / "implant.stl").is_file()
    for name, arguments, words in (
        ("design", {"scan": "../skull.nrrd", "out": "out"}, "leads out"),
        ("design", {"scan": "skull.nrrd", "out": "/tmp"}, "leads out"),
        ("design", {"scan": "skull.nrrd", "out": "out", "method": "nothing"}, "unknown method 'nothing'"),
        ("design", {"scan": "skull.nrrd", "out": "out", "engrave": "OP#7"}, "--engrave"),
        ("design", {"scan": "skull.nrrd", "out": "out", "drain_hole": "2@12"}, "drain_holes, engrave"),
        ("design", {"scan": "skull.nrrd", "out": "out", "fixation": 13}, "invalid value for '--fixation'"),
        ("score", {"predictions": "out", "truth": "skull.nrrd", "out": "scores"}, "expected a data set's folder"),
    ):
        good, text = use(name, **arguments)
        assert not good
        assert words in text
        assert "\n" not in text
