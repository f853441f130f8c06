"""The bus on NATS JetStream."""

from adapters.bus.connection import connect, without_secrets
from adapters.bus.jetstream import JetStreamBus, open_bus
from adapters.bus.provision import ProvisionError, provision

__all__ = ["JetStreamBus", "ProvisionError", "connect", "open_bus", "provision", "without_secrets"]
