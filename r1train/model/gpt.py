"""R1Model: megatron-core's GPTModel, plus a forward that RL needs: main head only, with a function of the logits."""

from functools import partial

from megatron.core.models.gpt import GPTModel

from r1train.model.mtp import counting_whole_rows
from r1train.model.sharded import without_extra_state


class R1Model(GPTModel):
    """GPTModel whose MTP block runs for the language-model loss alone.

    megatron-core runs MTP whenever it is configured, also for a forward that only wants log-probabilities. With an
    `output_processor` the MTP block is left out: RL and evaluation train and score the main head.

    It also cuts the mask of padding for sequence parallelism on the first pipeline stage only; here every stage does.
    Under context parallelism the MTP loss counts whole rows (model/mtp.py).
    """

    def head(self):
        """hidden [..., h] -> (logits, None): the output layer, with the embedding's weight where that is tied to it."""
        if not self.share_embeddings_and_output_weights:
            return self.output_layer
        return partial(self.output_layer, weight=self.shared_embedding_or_output_weight())

    def sharded_state_dict(self, prefix="", sharded_offsets=(), metadata=None):
        """Every layer under its own name: names depend on neither backend nor layout (convert/names.py lists them)."""
        metadata = {**(metadata or {}), "non_homogeneous_layers": True}
        return without_extra_state(super().sharded_state_dict(prefix, sharded_offsets, metadata))

    def _preprocess(self, *args, padding_mask=None, **kwargs):
        if padding_mask is not None and self.config.sequence_parallel and not self.pre_process:
            group = self.pg_collection.tp
            padding_mask = padding_mask.chunk(group.size(), dim=1)[group.rank()].contiguous()
        return super()._preprocess(*args, padding_mask=padding_mask, **kwargs)

    def _postprocess(self, hidden_states, *args, output_processor=None, **kwargs):
        if output_processor is None:
            with counting_whole_rows(self.pg_collection.cp):
                return super()._postprocess(hidden_states, *args, **kwargs)
        if not self.post_process:
            return hidden_states
        return output_processor(
            hidden_states=hidden_states, output_layer=self.head(), context=kwargs["output_processor_context"]
        )
