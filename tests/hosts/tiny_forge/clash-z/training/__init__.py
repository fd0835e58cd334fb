OWNER = "clash-z"
