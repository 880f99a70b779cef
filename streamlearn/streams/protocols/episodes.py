"""Episodes: small tasks drawn from a distribution of tasks, each with rows to learn from and rows to be asked on.

An experience is a stretch of the distribution. Its data are `Episodes`, whose unit is the episode: a batch holds ``batch_size`` of
them, first all ``support`` rows, then all ``query`` rows, and ``batch.by_domain()`` gives one batch for each episode.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from streamlearn.errors import DataError
from streamlearn.streams.data import Data, JoinedData, join
from streamlearn.streams.episode_data import Episodes
from streamlearn.streams.experience import EvaluationSet, Experience
from streamlearn.streams.inputs import count_or_endless
from streamlearn.streams.protocols.class_families import class_pools
from streamlearn.streams.protocols.families import FUNCTIONS, Family, Pools, Sizes, Stretch, function_pools
from streamlearn.streams.protocols.several import listed
from streamlearn.streams.stream import ENDLESS, Stream

if TYPE_CHECKING:
    from streamlearn.streams.inputs import SourceLike

__all__ = ["Episodes", "episodes"]


def episodes(
    source: SourceLike | Sequence[Any] = "sinusoids",
    experiences: int | str = 1,
    *,
    ways: int = 5,
    shots: int = 5,
    queries: int = 10,
    train_episodes: int = 1000,
    test_episodes: int = 100,
    held_out: float = 0.3,
    held_out_families: Sequence[str] | None = None,
    seed: int = 0,
    test: SourceLike | Sequence[Any] | None = None,
) -> Stream:
    """Small tasks, each with a few rows to learn from and others to be asked on; training and evaluation meet different ones.

    Protocol: a *family* is either functions of one variable, x uniform in [-5, 5], or the N-way K-shot classifications of a source.

    - ``"sinusoids"``: y = A sin(x + φ), A in [0.1, 5], φ in [0, π]. ``"lines"``: y = a x + b, a and b in [-3, 3]. ``"harmonics"``:
      y = a sin(ω x + φ) + b sin(2 ω x + ψ), a and b standard normal, ω in [5, 7]. ``"quadratics"``: y = a (x - c)² + b, a in ±[0.02, 0.15],
      b and c in [-3, 3]. ``"steps"``: ±1, turning round at three points in [-2.5, 2.5]. An episode has ``shots`` support rows and
      ``queries`` query rows; test episodes are functions drawn anew.
    - a source: an episode draws ``ways`` classes, numbers them anew, and takes ``shots`` + ``queries`` rows of each. A fraction
      ``held_out`` of the classes, drawn by ``seed``, never trains, and all their rows make up the test episodes. With ``test``, all classes
      of the source train, and test episodes are made of all classes of ``test``.

    Of several families each episode draws one, all equally likely; those of one family lie side by side in the data of an experience.
    With ``held_out_families`` all test episodes are of these, which never train; of the other families everything trains.

    An episode's domain is ``"train/17"`` or ``"test/17"``, or, of several families, ``"train/lines/17"``.

    Args:
        source: "sinusoids", "lines", "harmonics", "quadratics", "steps", or a source as for `class_incremental`, of which the rows that it
            has for testing are left aside; or a list of either kind. Images of another size than those of the first source, with as many
            channels, are brought to its size.
        experiences: at least 1, or "endless"; each has episodes of its own.
        ways: classes of an episode, at least 2; of sources.
        shots: support rows (of each class), at least 1.
        queries: query rows (of each class), at least 1.
        train_episodes: episodes of each experience, at least 1; an epoch goes through all of them.
        test_episodes: episodes of each evaluation set, at least 1.
        held_out: in (0, 1): how many of the classes of each source; unused with ``test`` and with ``held_out_families``.
        held_out_families: names of functions, or of sources, among those listed in ``source``; at least one other must be left.
        seed: at least 0.
        test: a source, or a list of them, with classes of its own, which are numbered as it likes; of a name, its test rows if it has any.

    Raises:
        DataError: an argument is out of its range, there are too few classes or rows, or the sources do not fit together.
        UnknownNameError: no source, or no family, has this name.

    Source: Vinyals et al., "Matching networks", NeurIPS 2016; Finn et al., "MAML", ICML 2017; several families: Vuorio et al.,
        "Multimodal model-agnostic meta-learning via task-aware modulation", NeurIPS 2019, and Triantafillou et al., "Meta-Dataset", ICLR
        2020; families held out: Hospedales et al., "Meta-learning in neural networks: a survey", TPAMI
        2021. Who uses which functions is told in `streamlearn.streams.protocols.families`.

    Example:
        >>> stream = episodes("sinusoids", shots=5, queries=10, train_episodes=100)
        >>> batch = stream[0].data["train"].batch(torch.tensor([0, 1]))
        >>> batch.roles, len(batch), len(batch.by_domain())
        (('support', 'query'), 30, 2)
        >>> stream = episodes(["sinusoids", "lines", "steps"], held_out_families=["steps"], train_episodes=100)
        >>> sorted(part.domain for part in stream[0].data["train"].parts()), stream.evaluation(0).data.domain
        (['train/lines/', 'train/sinusoids/'], 'test/steps/')
        >>> len(episodes("digits", ways=3, shots=1, train_episodes=100)[0].data["train"])
        100
    """
    length = count_or_endless(experiences, 1)
    sizes = Sizes(shots, queries, train_episodes, test_episodes, seed)
    several = listed(source)
    given = [source] if several is None else several
    if not given:
        raise DataError("source is an empty list: give at least one family of functions, or one source")
    functions = [item for item in given if isinstance(item, str) and item in FUNCTIONS]
    if not functions:
        pools = class_pools(given, test, held_out_families, ways, held_out, sizes)
    elif len(functions) < len(given):
        raise DataError(f"source lists functions ({', '.join(functions)}) among data sets: give families of one kind")
    else:
        pools = function_pools(functions, test, held_out_families, sizes)
    return _stream(pools, length, sizes)


def _stream(pools: Pools, length: int | None, sizes: Sizes) -> Stream:
    task, several = pools.task, pools.several
    classes = {task.name: tuple(range(task.size))} if task.kind == "classification" else {}

    def train(i: int) -> Experience:
        data = _drawn(pools.train, "train", i, sizes.train_episodes, sizes.seed, several)
        return Experience(i, (task,), {"train": data}, f"episodes {i}", classes)

    def test(i: int) -> EvaluationSet:
        return EvaluationSet(i, _drawn(pools.test, "test", i, sizes.test_episodes, sizes.seed, several), f"new episodes {i}")

    told = {"experiences": ENDLESS if length is None else length, "shots": sizes.shots, "queries": sizes.queries}
    told |= {"train_episodes": sizes.train_episodes, "test_episodes": sizes.test_episodes, "seed": sizes.seed}
    return Stream(
        f"{pools.name}/episodes",
        length,
        train,
        test,
        tasks=(task,),
        input_shape=pools.input_shape,
        description={"builder": "episodes", **pools.described, **told},
        fingerprints=lambda: [source.fingerprint() for source in pools.sources],
    )


def _drawn(pool: Sequence[Family], purpose: str, number: int, count: int, seed: int, several: bool) -> Data | JoinedData:
    """The episodes of one experience, or of one evaluation set; each draws its family."""
    numbers = torch.arange(count) + number * count
    which = _drawn_families(len(pool), count, f"{purpose}/{seed}/{number}")
    parts: list[Data] = []
    for place, family in enumerate(pool):
        mine = numbers[which == place]
        if len(mine):
            parts.append(family.episodes(Stretch(purpose, number, mine, f"{purpose}/{family.name}/" if several else f"{purpose}/", seed)))
    return join(parts)


def _drawn_families(families: int, count: int, purpose: str) -> Tensor:
    """For each episode the place of its family, uniform; the same for the first ones however many follow."""
    key = hashlib.sha256(f"episodes' families/{purpose}".encode()).digest()[:16]
    raw = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(count)
    return torch.from_numpy((raw % np.uint64(families)).astype(np.int64))
