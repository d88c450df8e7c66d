"""A pause in changes of collections, so that who copies them all comes to an end although they change all the time.

Decision made here: the pause is a fact that has to be set again every few seconds, and every process counts those
seconds itself from when it first saw it. So nobody waits for one who is dead, and no clocks are compared. Who appended
just before is no harm: the copy looks again and finds it.
"""

from __future__ import annotations

import asyncio
from typing import Final, final

from haclient.errors import DeadlineExceeded
from haclient.replication.log import MutationLog

#: The fact; its value names the cluster that is copied.
PAUSE: Final = "pause/definitions"
#: How long one setting of it counts, seconds.
_LASTS_S: Final = 5.0
#: Time between two looks, seconds.
_LOOK_S: Final = 0.1


@final
class Pause:
    """The pause as one process sees it.

    Args:
        log: The mutation log.
        loop: Its time is the clock.
    """

    def __init__(self, log: MutationLog, loop: asyncio.AbstractEventLoop) -> None:
        self._log = log
        self._loop = loop
        self._seen = 0
        self._until = 0.0

    async def passed(self, what: str, deadline: float) -> None:
        """Return once changes of collections are not paused.

        Args:
            what: Who waits, for the message.
            deadline: Loop time by which it has to be over.

        Raises:
            DeadlineExceeded: It was not.
            LogError: The log failed.
        """
        while (fact := (await self._log.facts(PAUSE)).get(PAUSE)) is not None:
            now = self._loop.time()
            if fact.version != self._seen:
                self._seen, self._until = fact.version, now + _LASTS_S
            if now >= self._until:
                return
            if now + _LOOK_S >= deadline:
                cluster = fact.value.decode()
                raise DeadlineExceeded(
                    f"{what}: not sent. Changes of collections wait until those of cluster {cluster} have been copied; "
                    "allow more time, or repeat it"
                )
            await asyncio.sleep(_LOOK_S)
