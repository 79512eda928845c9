resource "terraform_data" "greeting" {
  input = "@TEXT@"
}

output "greeting" {
  value = terraform_data.greeting.output
}
