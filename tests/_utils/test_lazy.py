from __future__ import annotations

import pytest

from secateur._utils.lazy import load_name


def test_a_name_is_taken_from_its_module():
    from secateur.errors import DataError

    assert load_name("secateur", {"DataError": "errors"}, "DataError") is DataError
    with pytest.raises(AttributeError, match="module 'secateur' has no attribute 'Nothing'"):
        load_name("secateur", {"DataError": "errors"}, "Nothing")
