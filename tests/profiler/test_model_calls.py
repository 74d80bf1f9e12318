"""Both names that transformers has had for a model's cache."""

from typing import Any

import pytest

from simkv.profiler.model_calls import cache_argument, given_cache


class Older:
    def forward(self, input_ids: Any, past_key_values: Any = None) -> None: ...


class Newer:
    def forward(self, input_ids: Any, cache: Any = None) -> None: ...


@pytest.mark.parametrize(("model", "name"), [(Older(), "past_key_values"), (Newer(), "cache")])
def test_a_cache_goes_in_and_is_found_by_the_models_own_name(model: Any, name: str) -> None:
    """The keyword is the one in the signature of ``forward``, and what a layer was given is read back by either."""
    assert {name: "kept"} == cache_argument(model, "kept")
    assert "kept" == given_cache({name: "kept", "hidden_states": 0})


def test_a_layer_without_a_cache_is_an_error() -> None:
    """Nothing is guessed when a layer was given no cache."""
    with pytest.raises(KeyError):
        given_cache({"hidden_states": 0})
