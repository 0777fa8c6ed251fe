"""Teacher assistants: models of sizes between teacher and student that learn first and then teach.

Mirzadeh et al. 2019 (arXiv 1902.03393).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from secateur.errors import InputError
from secateur.vocabulary import Recovery

__all__ = ["chain"]

T = TypeVar("T")


def chain(teacher: T, students: Sequence[T], teach: Callable[[T, T, int], Recovery]) -> list[Recovery]:
    """Teach each of `students` by the one before it, the first by `teacher`: assistants first, the student last.

    Source: section "Teacher assistant knowledge distillation" of the paper; one assistant or several ("TAKD path").

    Args:
        teacher: the original.
        students: from the largest to the smallest; the last is the one that is wanted.
        teach: (student, teacher, number) -> what the training took; trains the student in place, as `loop.train` does.
            The number, from 0, tells its checkpoints apart.

    Returns one record per student, in order. Raises `InputError` for no student, or one that would teach itself.
    """
    links = [teacher, *students]
    if len(links) < 2:
        raise InputError("a chain of teachers needs a student: give at least one")
    if len({id(link) for link in links}) < len(links):
        raise InputError("a model stands twice in the chain of teachers: give each once, from the largest down")
    return [teach(student, above, number) for number, (above, student) in enumerate(zip(links, students, strict=False))]
