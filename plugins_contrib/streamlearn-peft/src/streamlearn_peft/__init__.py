"""LoRA and other adapters of PEFT on a frozen encoder."""

from streamlearn_peft.plugin import PEFT

__all__ = ["PEFT"]
