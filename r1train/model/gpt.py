"""R1Model: megatron-core's GPTModel, plus a forward that RL needs: main head only, with a function of the logits."""

from megatron.core.models.gpt import GPTModel


class R1Model(GPTModel):
    """GPTModel whose MTP block runs for the language-model loss alone.

    megatron-core runs MTP whenever it is configured, also for a forward that only wants log-probabilities. With an
    `output_processor` the MTP block is left out: RL and evaluation train and score the main head.
    """

    def _postprocess(self, hidden_states, *args, output_processor=None, **kwargs):
        if output_processor is None:
            return super()._postprocess(hidden_states, *args, **kwargs)
        if not self.post_process:
            return hidden_states
        return output_processor(
            hidden_states=hidden_states, output_layer=self.output_layer, context=kwargs["output_processor_context"]
        )
