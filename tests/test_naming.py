"""Sentences that name what is at fault."""

from __future__ import annotations

import pytest

from snrecon.errors import InputError, MissingExtraError, naming


@pytest.mark.parametrize(
    ("source", "sentence", "expected"),
    [
        ("a.npz", "the mask is empty.", "a.npz: the mask is empty."),
        ("a.npz", "a.npz: the mask is empty.", "a.npz: the mask is empty."),
        ("a", "there is a mask without samples.", "a: there is a mask without samples."),
        ("a.npz", "psi.npy: it holds NaN.", "a.npz: psi.npy: it holds NaN."),
    ],
)
def test_the_source_is_named_once(source: str, sentence: str, expected: str) -> None:
    with pytest.raises(InputError) as caught, naming(source):
        raise InputError(sentence)
    assert str(caught.value) == expected


def test_what_is_no_fault_of_the_source_passes_through() -> None:
    with pytest.raises(MissingExtraError, match=r"^writing"), naming("a.npz"):
        raise MissingExtraError("writing NIfTI files", "nifti")
    with pytest.raises(ZeroDivisionError), naming("a.npz"):
        raise ZeroDivisionError
