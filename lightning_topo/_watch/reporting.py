"""Turn measurements into readings, phases and events, and pass all to the outputs."""

from collections.abc import Iterable, Mapping

from lightning_topo._watch.output import Output, Run
from lightning_topo._watch.published_values import Readings
from lightning_topo.homology import PersistenceDiagram
from lightning_topo.measurement import GLOBAL, Measurement
from lightning_topo.phases import DetectorState, PhaseRules, TopologyEvent, observe
from lightning_topo.quantities import OUR_PROBES


class Reporting:
    """Hands every measurement to the detector and to the outputs, and what follows from it too.

    Before `start` events wait, since the outputs do not know the groups yet.
    """

    def __init__(self, outputs: Output, detector: DetectorState, rules: PhaseRules) -> None:
        self.outputs: Output = outputs
        self.detector: DetectorState = detector
        self.rules: PhaseRules = rules
        self.events: list[TopologyEvent] = []
        self.readings: Readings | None = None
        self._waiting: list[TopologyEvent] = []
        self._phase = detector.phase

    def start(self, run: Run) -> None:
        """The groups are known: start the outputs, and hand on the events so far."""
        self.readings = run.readings
        self.outputs.start(run)
        waiting, self._waiting = self._waiting, []
        for event in waiting:
            self.outputs.event(event)

    def measurement(self, measurement: Measurement, *, published: bool = True) -> None:
        """Hand on a measurement, and the events and the phase that follow from it."""
        self.outputs.measurement(measurement)
        if published and self.readings is not None:
            self.readings.take(measurement)
        if measurement.probe not in OUR_PROBES:  # a user's own names mean what the user says
            return
        self.detector, events = observe(self.detector, measurement, self.rules)
        for event in events:
            self.event(event)
        if self.detector.phase is not self._phase:
            self._phase = self.detector.phase
            values = {"phase": float(self._phase)}
            self.outputs.measurement(Measurement(measurement.step, measurement.epoch, "phase", GLOBAL, values))

    def event(self, event: TopologyEvent) -> None:
        """Hand on an event."""
        self.events.append(event)
        if self.readings is None:
            self._waiting.append(event)
        else:
            self.outputs.event(event)

    def diagrams(self, step: int, diagrams: Mapping[str, PersistenceDiagram]) -> None:
        """Hand on the diagrams of one capture."""
        if diagrams:
            self.outputs.diagrams(step, diagrams)

    def lines(self, measurements: Iterable[Measurement]) -> None:
        """Hand on measurements of the training or of the monitor itself."""
        for measurement in measurements:
            self.measurement(measurement, published=False)

    def read(self, measurements: Iterable[Measurement]) -> None:
        """Publish measurements without recording them: the record has them in another form."""
        if self.readings is not None:
            for measurement in measurements:
                self.readings.take(measurement)

    def row(self, step: int, epoch: int) -> None:
        """Send what is new since the last row."""
        if self.readings is not None:
            self.outputs.measurement(self.readings.row(step, epoch))
