"""What is not of our making: a logger that nobody knows, and names that would do harm."""

from lightning.pytorch.loggers.logger import Logger


class Foreign(Logger):
    """A logger that Lightning knows nothing of, with the generic interface alone."""

    def __init__(self):
        super().__init__()
        self.rows = []

    name, version = "foreign", "0"

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, metrics))

    def log_hyperparams(self, params, *args, **kwargs):
        pass


NAMES = (
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    "javascript:alert(3)",
    '"><img src=x onerror=alert(4)>',
    "'-alert(5)-'",
    "../../../etc/x",
    "/etc/passwd",
    "..\\..\\x",
    "a\u202eb\u2028c\x00d",
    "\ud800",
    "{{data}}",
    "<!--<script>",
)
