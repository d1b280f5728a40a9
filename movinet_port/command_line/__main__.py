"""``python -m movinet_port.command_line``, where the script movinet-port is not on the path."""

from movinet_port.command_line.cli import main

main(prog_name="movinet-port")
