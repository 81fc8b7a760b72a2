"""Extends vLLM's worker by a reload of all weights, tied output layers included."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from vllm.model_executor.layers.vocab_parallel_embedding import (
        ParallelLMHead,
        VocabParallelEmbedding,
    )


class ReloadingWorker:
    """A mixin of vLLM's worker (option `worker_extension_cls`), called through `collective_rpc`."""

    model_runner: Any
    reload_weights: Any

    def reload_published(self, directory: str) -> None:
        """Replace the weights by those in `directory`, those of a tied output layer included.

        vLLM reloads a layer if the files have a tensor of its name, and for a tied output layer
        they have none. On a GPU that layer computes with the embedding's memory, and so has the new
        weights. On CPU it computes with a copy that was packed for the processor when the model was
        first loaded, and would keep the old weights.
        """
        model = self.model_runner.get_model()
        tied = list(_tied_output_layers(model))
        self.reload_weights(weights_path=directory)
        for output_layer, embedding in tied:
            output_layer.tie_weights(embedding)
            output_layer.quant_method.process_weights_after_loading(output_layer)


def _tied_output_layers(
    model: torch.nn.Module,
) -> Iterator[tuple[ParallelLMHead, VocabParallelEmbedding]]:
    """Yield each output layer that shares its weights with an embedding, and that embedding."""
    from vllm.model_executor.layers.vocab_parallel_embedding import (
        ParallelLMHead,
        VocabParallelEmbedding,
    )

    layers = [layer for layer in model.modules() if isinstance(layer, VocabParallelEmbedding)]
    for output_layer in (layer for layer in layers if isinstance(layer, ParallelLMHead)):
        for embedding in layers:
            if embedding is not output_layer and embedding.weight is output_layer.weight:
                yield output_layer, embedding
