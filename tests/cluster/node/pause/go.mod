module terrahalt.test/node/pause

go 1.24.0
