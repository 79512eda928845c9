# init fetches this with git, whose own child waits for a server that takes the connection and never answers.
module "network" {
  source = "git::http://@HOST@/network.git"
}
