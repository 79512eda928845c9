# The module lies in the same repository, outside of the directory in which terraform runs.
module "greeting" {
  source = "../../modules/greeting"
}

output "greeting" {
  value = module.greeting.text
}
