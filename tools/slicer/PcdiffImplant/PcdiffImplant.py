"""3D Slicer module: designs an implant for a scan of the scene with the program `pcdiff`, and edits and checks it.

Slicer and pcdiff do not share a Python: the module runs the program in the background and exchanges files with it.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import qt
import slicer
from PcdiffImplantLib import commands, words
from PcdiffImplantLib.exchange import (
    ExchangeError,
    Segment,
    edit_in_segment_editor,
    load_case,
    show_marks,
    write_inputs,
)
from PcdiffImplantLib.form import Form, section, segment_selector, selected_segment
from PcdiffImplantLib.job import Job, RunError
from PcdiffImplantLib.tests import PcdiffImplantTest as PcdiffImplantTest  # Slicer looks for it here
from slicer.ScriptedLoadableModule import ScriptedLoadableModule, ScriptedLoadableModuleWidget

POLL_MS = 200


class PcdiffImplant(ScriptedLoadableModule):
    """The module's entry in Slicer."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = "Cranial implant (pcdiff)"
        parent.categories = ["Planning"]
        parent.dependencies = ["Segmentations", "SegmentEditor"]
        parent.contributors = ["the pcdiff authors"]
        parent.helpText = (
            "Choose a CT, a mask or a segmentation of the skull with its defect and press Design. The implant is "
            "loaded as a label volume and as a model; it can be edited, checked again, and made to fit again."
            f"<br><b>{words.NOTICE}</b>"
        )
        parent.acknowledgementText = (
            "The program is started as the user chose it; nothing is installed into Slicer's Python."
        )


class PcdiffImplantWidget(ScriptedLoadableModuleWidget):
    """The panel: a form, buttons, progress, and what was found."""

    def setup(self):
        """Builds the panel and asks the program what it can do."""
        ScriptedLoadableModuleWidget.setup(self)
        self.form = Form(self.layout)
        self.design_button = _button("Design", self.design)
        self.cancel_button = _button("Cancel", self.cancel)
        self.stage, self.progress = qt.QLabel(), qt.QProgressBar()
        self.message = qt.QLabel(words.NOTICE)
        self.message.wordWrap = self.message.openExternalLinks = True
        for widget in (self.design_button, self.cancel_button, self.stage, self.progress, self.message):
            self.layout.addWidget(widget)

        rows = section(self.layout, "Edit")
        self.edited = segment_selector()
        self.edit_button = _button("Edit the implant", self.edit)
        self.check_button = _button("Check the edited implant", self.check)
        self.fit_button = _button("Make the edited implant fit", self.fit)
        rows.addRow(self.edit_button)
        rows.addRow("Edited implant:", self.edited)
        rows.addRow(self.check_button)
        rows.addRow(self.fit_button)
        self.layout.addStretch(1)

        self.timer = qt.QTimer()
        self.timer.setInterval(POLL_MS)
        self.timer.connect("timeout()", self._poll)
        self._job = None
        self._finish: Callable[[Job], None] | None = None
        self._stages: dict[str, int] = {}  # title -> share of the time
        self._implant = None  # the label volume and the model of the last design
        self._show_state()
        self.form.program.connect("currentPathChanged(QString)", self._on_program)
        self.ask_program()

    def cleanup(self):
        """Ends a run when Slicer unloads the module."""
        self.timer.stop()
        if self._job is not None:
            self._job.close()
            self._job = None

    def ask_program(self):
        """Runs `pcdiff info`, which tells the methods that are ready and the stages of a design."""
        self._start(lambda _: commands.info(self.form.program.currentPath), self._list_capabilities)

    def design(self):
        """Designs an implant."""
        self._design(None)

    def check(self):
        """Checks the edited implant."""
        self._with_edited(self._check)

    def fit(self):
        """Makes the edited implant fit, with the form's options, and loads the result."""
        self._with_edited(self._design)

    def edit(self):
        """Opens the implant of the last design in the Segment Editor, as a segmentation of its own."""
        volume, model = self._implant
        if not slicer.mrmlScene.IsNodePresent(volume) or not slicer.mrmlScene.IsNodePresent(model):
            self._say(words.error_words("The implant was removed from the scene: design it again."))
            return
        self.edited.setCurrentNode(edit_in_segment_editor(volume, model, self.form.source_volume()))

    def cancel(self):
        """Asks the run to end; what it wrote goes when it has."""
        self._job.cancel()
        self._show_progress("cancelling", None)

    def _with_edited(self, act: Callable[[Segment], None]) -> None:
        edited = selected_segment(self.edited)
        if edited is None:
            self._say(words.error_words("Choose the edited implant first: a segment of a segmentation."))
        else:
            act(edited)

    def _check(self, edited: Segment) -> None:
        program, choices = self.form.program.currentPath, self.form.choices()
        self._start(
            lambda folder: commands.check(program, self._inputs(folder, edited), choices),
            lambda job: self._say(words.check_words(job.answer()["checks"])),
        )

    def _design(self, edited: Segment | None) -> None:
        program, choices = self.form.program.currentPath, self.form.choices()
        results = Path(self.form.results.currentPath or slicer.app.defaultScenePath).absolute()
        self._start(
            lambda folder: commands.design(program, self._inputs(folder, edited), choices, folder / "out"),
            lambda job: self._load(job, results),
        )

    def _inputs(self, folder: Path, edited: Segment | None) -> commands.Inputs:
        scan = self.form.selected_scan()
        if scan is None:
            raise ExchangeError("Choose a CT, a mask, or a segmentation and its segment of bone first.")
        with slicer.util.WaitCursor():
            return write_inputs(folder, scan, edited, self.form.selected_region())

    def _start(self, prepare: Callable[[Path], list[str]], finish: Callable[[Job], None]) -> None:
        """Starts a run. prepare: writes files into the temporary folder, returns the command. finish: of a good end."""
        job = Job()
        try:
            job.start(prepare(job.folder), slicer.util.startupEnvironment())
        except (ExchangeError, RunError) as error:
            job.close()
            self._say(words.error_words(error))
            return
        except BaseException:
            job.close()
            raise
        self._job, self._finish = job, finish
        self._say(words.NOTICE)
        self._show_state()
        self._show_progress("", None)
        self.timer.start()

    def _poll(self) -> None:
        """Shows the stage of the run; when it has ended, its result, or why there is none."""
        job = self._job
        running = job.running  # before the lines are read, so that the last ones are not missed
        for line in job.new_lines():
            self._show_stage(commands.stage_of(line))
        if running:
            return
        self.timer.stop()
        try:
            if job.cancelled:
                self._say("Cancelled.")
            else:
                self._finish(job)
        except (RunError, OSError, RuntimeError) as error:
            self._say(words.error_words(error))
        finally:
            job.close()
            self._job = None
            self._show_state()

    def _list_capabilities(self, job: Job) -> None:
        info = job.answer()
        if "stages" not in info:
            raise RunError(f"pcdiff {info['pcdiff']} is older than this module: update pcdiff")
        self._stages = {stage["title"]: stage["share"] for stage in info["stages"]}
        self.form.list_methods(info)

    def _load(self, job: Job, results: Path) -> None:
        """Moves the case to the folder of results, and loads its implant and the fixation marks."""
        record = job.answer()
        folder = _move(Path(record["folder"]), results)
        checks = json.loads((folder / "checks.json").read_text(encoding="utf-8"))["checks"]
        self._implant = load_case(folder)
        show_marks(f"{folder.name} fixation", record["fixation"])
        self._say(words.design_words(record, checks, (folder / "report.html").as_uri()))

    def _on_program(self, path: str) -> None:
        if self._job is None and Path(path).is_file():
            self.ask_program()

    def _show_stage(self, title: str | None) -> None:
        if title in self._stages:
            titles = list(self._stages)
            before = sum(self._stages[each] for each in titles[: titles.index(title)])
            self._show_progress(title, round(100 * before / sum(self._stages.values())))

    def _show_progress(self, text: str, percent: int | None) -> None:
        """percent: None for a bar that moves without saying how far."""
        self.stage.text = text
        self.progress.setRange(0, 0 if percent is None else 100)
        self.progress.setValue(percent or 0)

    def _show_state(self) -> None:
        running = self._job is not None
        for button in (self.design_button, self.check_button, self.fit_button):
            button.enabled = not running
        self.edit_button.enabled = not running and self._implant is not None
        self.cancel_button.enabled = self.progress.visible = self.stage.visible = running

    def _say(self, html: str) -> None:
        self.message.text = html


def _button(text: str, act: Callable[[], None]):
    button = qt.QPushButton(text)
    button.connect("clicked()", act)
    return button


def _move(case: Path, results: Path) -> Path:
    """Moves a case folder into `results`; a number is added to a name that is taken."""
    results.mkdir(parents=True, exist_ok=True)
    number, folder = 1, results / case.name
    while folder.exists():
        number += 1
        folder = results / f"{case.name}-{number}"
    shutil.move(case, folder)
    return folder
