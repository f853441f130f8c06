"""Prices as they were looked up for one policy revision: dated data that stands beside it and never changes."""

from datetime import date

from schemas.base import Message
from schemas.policy import Policy, Price


class PriceTable(Message):
    """What models without a price of their own cost."""

    version: str
    """Where they come from, and which edition: `genai-prices 0.2.3`."""
    as_of: date
    """The day whose prices they are, by UTC."""
    models: dict[str, Price]
    """By the model's name in the policy; what is missing has no known price."""

    def fill(self, policy: Policy) -> Policy:
        """The policy with these prices where it has none; its own always stand."""
        models = {
            name: model.model_copy(update={"price": self.models[name]})
            if model.price is None and name in self.models
            else model
            for name, model in policy.models.items()
        }
        return policy.model_copy(update={"models": models})
