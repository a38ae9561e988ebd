"""LeRobot's policy type ``vlakern``; LeRobot imports this package when it is installed."""

# LeRobot finds the other modules by their names, from that of the configuration.
from lerobot_policy_vlakern.configuration_vlakern import VlakernConfig
from lerobot_policy_vlakern.environment import SawyerConfig

__all__ = ["SawyerConfig", "VlakernConfig"]
