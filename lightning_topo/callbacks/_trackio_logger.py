"""A logger for Trackio, which keeps runs on one's own machine: Lightning has none."""

import atexit
from argparse import Namespace
from collections.abc import Mapping
from contextlib import redirect_stdout
from datetime import datetime
from importlib.util import find_spec
from io import StringIO
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from lightning_topo._keywords import explains_keywords

if TYPE_CHECKING:
    from trackio.run import Run


@explains_keywords
class TrackioLogger(Logger):
    """Logs metrics and hyperparameters to Trackio on this machine, without an account, a server or the network.

        trainer = Trainer(logger=TrackioLogger("my-project"), callbacks=[TopologyMonitor()])

    `trackio show --project my-project` opens the dashboard. Runs are stored in the folder that the environment variable
    `TRACKIO_DIR` named when trackio was imported, by default `~/.cache/huggingface/trackio`. The variables
    `TRACKIO_SPACE_ID` and `TRACKIO_SERVER_URL` are ignored. Alerts go to `TRACKIO_WEBHOOK_URL` if you set it.

    Args:
        project: The Trackio project that the run belongs to.
        run: The run's name; by default the date, the time and four random hexadecimal digits.
        resume: Whether to continue the project's last run of this name, if there is one.
        group: The name of a set of runs that the dashboard shows and hides together.

    Raises:
        ImportError: Trackio is not installed.
    """

    def __init__(
        self, project: str = "lightning", run: str | None = None, *, resume: bool = False, group: str | None = None
    ) -> None:
        super().__init__()
        if find_spec("trackio") is None:
            raise ImportError("TrackioLogger needs trackio: pip install 'lightning-topo[trackio]'")
        self._project, self._group, self._resume = project, group, resume
        self._name = f"{datetime.now():%m%d_%H%M%S}_{uuid4().hex[:4]}" if run is None else run
        self._id: str | None = None
        self._config: dict[str, Any] = {}
        self._experiment: Run | None = None

    @property
    def name(self) -> str:
        """The name of the Trackio project."""
        return self._project

    @property
    def version(self) -> str:
        """The name of the run."""
        return self._name

    @property
    @rank_zero_experiment
    def experiment(self) -> "Run":
        """The `trackio.run.Run` that rows go to, opened at the first access and again after `finalize`."""
        if self._experiment is None:
            if self._id is None and self._resume:
                self._find_last()
            self._experiment = run = _local_run(self._project, self._name, self._id, self._group)
            self._id = run.id
            run.config = {**run.config, **self._config}  # pyright: ignore[reportGeneralTypeIssues]
            run.log({}, step=0)  # a config is stored with the first row
            atexit.register(self.finalize, "exit")  # a loop of one's own, or a script that breaks off, ends no logger
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log one row of values by name, at a step."""
        self.experiment.log(dict(metrics), step=step)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Add hyperparameters to the run's config.

        It closes the run and opens it again, because Trackio stores the config when a run is opened.
        """
        self.finalize("config")
        self._config |= vars(params) if isinstance(params, Namespace) else params
        _ = self.experiment

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write all pending rows and close the run; logging after this opens the same run again."""
        atexit.unregister(self.finalize)
        run, self._experiment = self._experiment, None
        if run is not None:
            with redirect_stdout(StringIO()):  # "Uploading logs", where nothing is
                run.finish()

    def _find_last(self) -> None:
        """Take over id and config of the project's last run of this name."""
        import trackio

        try:
            found = [run for run in trackio.Api().runs(self._project) if run.name == self._name]
        except ValueError:  # there is no such project yet
            return
        if found:
            self._id = found[-1].id
            old = found[-1].config or {}
            self._config = {k: v for k, v in old.items() if not k.startswith("_")} | self._config


def _local_run(project: str, name: str, run_id: str | None, group: str | None) -> "Run":
    """A run of Trackio that is nobody else's, and asks nobody who the user is.

    `trackio.init` would end the run that the process has, follow the environment to a server, and start threads of its
    own for the hardware.
    """
    from trackio.run import Run

    class LocalRun(Run):
        def _get_username(self) -> None:
            """None: Trackio would ask the Hugging Face Hub, where someone has logged in."""

    return LocalRun(url=None, project=project, client=None, name=name, run_id=run_id, group=group)
