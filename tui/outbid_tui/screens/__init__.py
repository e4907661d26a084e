"""The screens, in the order of their numbers."""

from outbid_tui.base import MeshScreen
from outbid_tui.screens.auction import AuctionScreen
from outbid_tui.screens.chat import ChatScreen
from outbid_tui.screens.history import HistoryScreen
from outbid_tui.screens.jobs import JobsScreen
from outbid_tui.screens.logs import LogsScreen
from outbid_tui.screens.mesh import NodesScreen
from outbid_tui.screens.models import ModelsScreen
from outbid_tui.screens.studio import StudioScreen

SCREENS: tuple[tuple[str, type[MeshScreen]], ...] = (
    ("mesh", NodesScreen),
    ("jobs", JobsScreen),
    ("auction", AuctionScreen),
    ("chat", ChatScreen),
    ("studio", StudioScreen),
    ("models", ModelsScreen),
    ("history", HistoryScreen),
    ("logs", LogsScreen),
)
