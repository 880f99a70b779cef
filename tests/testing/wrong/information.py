"""Wrong in what they say of themselves."""

from __future__ import annotations

from dataclasses import replace

from tests.testing.wrong.control import Control


class NoReference(Control):
    """Says nowhere whose method it is.

    A number that is reported under a method's name must be traceable to a paper and an equation.
    """

    info = replace(Control.info, name="no_reference", reference="")


class NameOfAClass(Control):
    """Is called like a class, not like an entry point.

    Strategies, folders of results and other plugins' ``before`` and ``after`` refer to a plugin by this word; one that no command line
    can spell cannot be referred to.
    """

    info = replace(Control.info, name="Name of a Class")


class SummaryOfManyLines(Control):
    """Has a summary that breaks every table in which it is listed."""

    info = replace(Control.info, name="summary_of_many_lines", summary="Pulls every weight.\n\nIt was found that this helps.")


class NameOfAnother(Control):
    """Has the name of an installed plugin that is another class.

    Two distributions with one name: pluggy drops the second without a word, and which is the second depends on the order of a scan.
    """

    info = replace(Control.info, name="replay")


class WrittenForTheFuture(Control):
    """Was written for a version of the hooks that does not exist yet.

    The engine refuses it (npe2 only warns that "things may break"); its author should hear that before the users do.
    """

    info = replace(Control.info, name="written_for_the_future", api=1000)
