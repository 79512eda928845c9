# The module comes from another repository of the same server, which asks for the same credentials, or with this one.
module "greeting" {
  source = "@MODULE@"
}

output "greeting" {
  value = module.greeting.text
}

output "password" {
  value     = "not for everybody"
  sensitive = true
}
