"""A stub of the widgets that the module in tools/slicer uses: of Qt, ctk and qMRMLWidgets.

A widget refuses properties and signals that are not of its class; a timer ticks when a test calls `tick`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar


class Widget:
    """A Qt object: takes only the properties and signals of its class."""

    properties: ClassVar[dict[str, Any]] = {}
    signals: tuple[str, ...] = ()

    def __init__(self, *arguments: Any) -> None:
        self.__dict__.update({"enabled": True, "visible": True, "toolTip": ""} | self.properties)
        self.__dict__["slots"] = {}

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.__dict__:
            raise AttributeError(f"{type(self).__name__} has no property {name}")
        self.__dict__[name] = value

    def connect(self, signal: str, slot: Callable[..., None]) -> None:
        assert signal in self.signals, signal
        self.slots.setdefault(signal, []).append(slot)

    def emit(self, signal: str, *values: Any) -> None:
        for slot in self.slots.get(signal, []):
            slot(*values)


class Layout(Widget):
    """Any layout."""

    def addWidget(self, widget: Widget) -> None:
        assert isinstance(widget, Widget)

    def addRow(self, *row: Any) -> None:
        assert isinstance(row[-1], Widget)

    def addStretch(self, stretch: int) -> None:
        pass


class Button(Widget):
    """QPushButton and ctkCollapsibleButton."""

    properties: ClassVar[dict[str, Any]] = {"text": ""}
    signals = ("clicked()",)

    def __init__(self, text: str = "") -> None:
        super().__init__()
        self.text = text

    def click(self) -> None:
        if self.enabled:
            self.emit("clicked()")


class Text(Widget):
    """QLabel and QLineEdit."""

    properties: ClassVar[dict[str, Any]] = {"text": "", "wordWrap": False, "openExternalLinks": False}

    def __init__(self, text: str = "") -> None:
        super().__init__()
        self.text = text


class ComboBox(Widget):
    """QComboBox."""

    properties: ClassVar[dict[str, Any]] = {"currentIndex": 0, "items": None}

    def __init__(self) -> None:
        super().__init__()
        self.items = []

    def addItem(self, text: str, data: Any) -> None:
        self.items.append((text, data))

    def itemData(self, index: int) -> Any:
        return self.items[index][1]

    def clear(self) -> None:
        self.items, self.currentIndex = [], 0


class Number(Widget):
    """QSpinBox and QDoubleSpinBox."""

    properties: ClassVar[dict[str, Any]] = dict.fromkeys(
        ("minimum", "maximum", "value", "suffix", "singleStep", "specialValueText")
    )


class ProgressBar(Widget):
    """QProgressBar. range, value: as set."""

    properties: ClassVar[dict[str, Any]] = {"range": (0, 100), "value": 0}

    def setRange(self, low: int, high: int) -> None:
        self.range = (low, high)

    def setValue(self, value: int) -> None:
        self.value = value


class Timer(Widget):
    """QTimer that a test drives."""

    properties: ClassVar[dict[str, Any]] = {"interval": 0, "active": False}
    signals = ("timeout()",)

    def setInterval(self, ms: int) -> None:
        self.interval = ms

    def start(self) -> None:
        self.active = True

    def stop(self) -> None:
        self.active = False

    def tick(self) -> None:
        if self.active:
            self.emit("timeout()")


class PathEdit(Widget):
    """ctkPathLineEdit."""

    Files, Dirs = 1, 2
    properties: ClassVar[dict[str, Any]] = {"filters": 0, "path": ""}
    signals = ("currentPathChanged(QString)",)

    @property
    def currentPath(self) -> str:
        return self.path

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "currentPath":
            self.path = value
            self.emit("currentPathChanged(QString)", value)
        else:
            super().__setattr__(name, value)


class NodeSelector(Widget):
    """qMRMLNodeComboBox and qMRMLSegmentSelectorWidget. Without a none it shows the first node that there is."""

    properties: ClassVar[dict[str, Any]] = {
        "nodeTypes": ("vtkMRMLSegmentationNode",),
        "showChildNodeTypes": True,
        "addEnabled": True,
        "removeEnabled": True,
        "noneEnabled": False,
        "horizontalLayout": False,
        "segmentationNodeSelectorVisible": True,
        "scene": None,
        "node": None,
        "segment": "",
    }
    signals = ("currentNodeChanged(vtkMRMLNode*)",)

    def setMRMLScene(self, scene: Any) -> None:
        self.scene = scene
        found = [node for node in scene.nodes.values() if any(map(node.IsA, self.nodeTypes))]
        self.setCurrentNode(found[0] if found and not self.noneEnabled else None)

    def currentNode(self) -> Any:
        return self.node

    def setCurrentNode(self, node: Any) -> None:
        self.node = node
        self.segment = next(iter(getattr(node, "segments", {})), "")
        self.emit("currentNodeChanged(vtkMRMLNode*)", node)

    def currentSegmentID(self) -> str:
        return self.segment

    def setCurrentSegmentID(self, id_: str) -> None:
        self.segment = id_


def modules(settings: dict[str, Any]) -> dict[str, ModuleType]:
    """Name -> stub module. settings: what Qt keeps from one start to the next."""
    qt = ModuleType("qt")
    qt.__dict__.update(
        QLabel=Text,
        QLineEdit=Text,
        QPushButton=Button,
        QFormLayout=Layout,
        QComboBox=ComboBox,
        QSpinBox=Number,
        QDoubleSpinBox=Number,
        QProgressBar=ProgressBar,
        QTimer=Timer,
        QSettings=lambda: SimpleNamespace(setValue=settings.__setitem__),
    )
    ctk = ModuleType("ctk")
    ctk.__dict__.update(ctkCollapsibleButton=Button, ctkPathLineEdit=PathEdit)
    return {"qt": qt, "ctk": ctk}
