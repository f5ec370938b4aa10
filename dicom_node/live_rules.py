"""The rules that hold now: those of the files when they are right, else the last ones that were.

The three files that decide are looked at with every sweep of assembly. A change is taken when it
has lasted from one look to the next, so that no half-written file is read; `dicom-node check` tells
before what is wrong with it, and SIGHUP has it taken at once. All three are checked together and
swapped together, with the cards of the models that are there; a plan keeps the digest that it was
made under.
"""

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from dicom_node.errors import ConfigurationError
from dicom_node.rules import Routing
from dicom_node.settings import RULE_FILES, Configuration, reload_rules
from synthesis.errors import SynthesisError
from synthesis.registry import ModelCard, load_cards

_Signature = tuple[tuple[int, int], ...]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What decides, as one.

    Attributes:
        cards: of the models that are there.
    """

    configuration: Configuration
    cards: Sequence[ModelCard]


class LiveRules:
    """The rules of a configuration folder; safe to share between threads.

    Attributes:
        problem: what is wrong with the files as they are now; None when they are what holds.
    """

    problem: str | None = None

    def __init__(self, configuration: Configuration) -> None:
        """Begin with a configuration as it was read at start."""
        self._configuration = configuration
        self._cards: Sequence[ModelCard] | None = None
        self._lock = threading.Lock()
        self._taken: _Signature = ()
        self._seen: _Signature = ()

    @property
    def routing(self) -> Routing:
        """The protocols that hold."""
        return self._configuration.routing

    def look(self) -> Rules:
        """Return the rules that hold, after a look at the files.

        Raises:
            UntrustedModel: the card of a model cannot be read, and none could before.
        """
        self.refresh()
        with self._lock:
            if self._cards is None:
                # Read here and not at start: a broken model stops judging, never reception.
                self._cards = load_cards(self._configuration.node.models_folder)
            return Rules(configuration=self._configuration, cards=self._cards)

    def refresh(self, *, at_once: bool = False) -> None:
        """Look at the files, and take what they say when it has changed and is right.

        Args:
            at_once: take a change though it has just been made.
        """
        with self._lock:
            signature = self._sign()
            is_settled = at_once or signature == self._seen
            self._seen = signature
            if signature != self._taken and is_settled:
                self._taken = signature
                self._take()

    def _take(self) -> None:
        """Swap to what the files say, or tell what is wrong with them."""
        try:
            found = reload_rules(self._configuration)
            cards = load_cards(found.node.models_folder)
        except (ConfigurationError, SynthesisError) as error:
            self.problem = str(error)
            logger.error(
                "rules.refused kept=%s mistakes=%d: run `dicom-node check`",
                self._configuration.digest[:16],
                len(self.problem.splitlines()),
            )
            return
        self.problem = None
        if found.digest != self._configuration.digest:
            logger.info("rules.changed digest=%s", found.digest[:16])
        self._configuration, self._cards = found, cards

    def _sign(self) -> _Signature:
        """Return what changes with the files: their times and lengths."""
        signature = []
        for name in RULE_FILES:
            try:
                found = (self._configuration.folder / name).stat()
            except OSError:
                signature.append((0, 0))
            else:
                signature.append((found.st_mtime_ns, found.st_size))
        return tuple(signature)
