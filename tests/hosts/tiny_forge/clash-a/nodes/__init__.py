OWNER = "clash-a"
