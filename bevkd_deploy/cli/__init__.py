"""The `bevkd` command: one thin file per subcommand, each calling one public function."""
